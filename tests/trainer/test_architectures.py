"""Packed rows are exact for every architecture that is not refused: values, gradients, checkpointing, no leak."""

from __future__ import annotations

import functools
import inspect
import random

import pytest
import tiny_runs
import torch
import transformers

from amopo.packing import TokenizedSample, attention, pack
from amopo.trainer import AMoPOTrainer, packed_logps, patch_forward

VOCAB = 64
SIZES = {
    "vocab_size": VOCAB, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 128, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
    "initializer_range": 0.2, "head_dim": 8,
}  # fmt: skip
MOE = {"num_experts": 4, "num_local_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 24}
# a window shorter than every sequence
ARCHITECTURES = {
    "llama": {},
    "qwen2": {},
    "qwen2-tied": {"tie_word_embeddings": True},
    "qwen3": {},
    "mistral": {"sliding_window": 4},
    "gemma2": {"sliding_window": 4, "query_pre_attn_scalar": 8, "attn_implementation": "eager"},
    "gemma3_text": {"sliding_window": 4, "query_pre_attn_scalar": 8},
    "phi3": {"sliding_window": 5},
    "olmo2": {},
    "gpt_neox": {},
    "mixtral": {**MOE, "sliding_window": None},
    "qwen3_moe": MOE,
    "granite": {},
    "starcoder2": {"sliding_window": 4},
    "smollm3": {},
}


def tiny(name):
    kind = name.removesuffix("-tied")
    options = {**SIZES, **ARCHITECTURES[name]}
    implementation = options.pop("attn_implementation", "sdpa")
    torch.manual_seed(0)
    config = transformers.AutoConfig.for_model(kind, **options)
    model = transformers.AutoModelForCausalLM.from_config(config, attn_implementation=implementation)
    return model.float().train()


def make_samples(num_objectives, position, count=2):
    """Unequal responses, a one-token one, ones that begin alike; templates before, after, or both."""
    rng = random.Random(num_objectives)

    def tokens(low, high):
        return [rng.randrange(3, VOCAB) for _ in range(rng.randint(low, high))]

    samples = []
    for number in range(count):
        header, x, tail = tokens(2, 3), tokens(4, 8), tokens(1, 2)
        prompts = []
        for k in range(num_objectives):
            template = [3 + k, *tokens(1, 4)]
            after = position == "suffix" or (position == "mixed" and k % 2)
            prompts.append(header + (x + template if after else template + x) + tail)
        begin = tokens(1, 3)
        chosen, rejected = begin + tokens(2, 6), begin + [2]
        if number == 1:
            chosen, rejected = [5], tokens(3, 7)
        samples.append(TokenizedSample(prompts, chosen, rejected, number))
    return samples


def separate_logps(model, samples):
    """Each sequence in a forward of its own, through the plain logits."""
    sums = []
    for sample in samples:
        for prompt in sample.prompts:
            for response in (sample.chosen, sample.rejected):
                logits = model(input_ids=torch.tensor([prompt + response]), use_cache=False).logits
                logps = logits[0, len(prompt) - 1 : -1].float().log_softmax(-1)
                sums.append(logps.gather(1, torch.tensor(response)[:, None]).sum())
    return torch.stack(sums).view(len(samples), -1, 2)


def check(model, samples, sharing):
    direction = torch.randn(len(samples), samples[0].num_objectives, 2, generator=torch.Generator().manual_seed(1))
    parameters = dict(model.named_parameters())
    expected = separate_logps(model, samples)
    exact = torch.autograd.grad((expected * direction).sum(), list(parameters.values()), allow_unused=True)
    got = packed_logps(model, pack(samples, sharing=sharing))
    found = torch.autograd.grad((got * direction).sum(), list(parameters.values()), allow_unused=True)
    torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-5)
    for name, value, right in zip(parameters, found, exact, strict=True):
        if right is None or not right.any():
            assert value is None or not value.any(), name
            continue
        assert (value - right).norm() < 1e-4 * right.norm() + 1e-7, name


@pytest.mark.parametrize("name", ARCHITECTURES)
@pytest.mark.parametrize("sharing", ["none", "pair", "tree"])
def test_values_and_gradients_are_those_of_separate_forwards(name, sharing):
    check(tiny(name), make_samples(3, "mixed"), sharing)


@pytest.mark.parametrize("num_objectives", [1, 4, 8])
@pytest.mark.parametrize("position", ["prefix", "suffix"])
@pytest.mark.parametrize("name", ["qwen2", "mistral"])
def test_any_number_of_objectives_and_place_of_templates(name, position, num_objectives):
    check(tiny(name), make_samples(num_objectives, position, count=3), "tree")


@pytest.mark.parametrize("reentrant", [False, True])
@pytest.mark.parametrize("name", ["llama", "mistral", "gemma2", "gpt_neox"])
def test_gradient_checkpointing_recomputes_the_same_attention(name, reentrant):
    model, batch = tiny(name), pack(make_samples(3, "suffix"), sharing="tree")
    parameters = list(model.parameters())
    with patch_forward(model):
        plain = torch.autograd.grad(packed_logps(model, batch).sum(), parameters)
        model.gradient_checkpointing_enable({"use_reentrant": reentrant})
        model.enable_input_require_grads()
        packed_logps(model, batch).sum().backward()
    for value, parameter in zip(plain, parameters, strict=True):
        assert (parameter.grad - value).norm() <= 1e-6 * value.norm()


@pytest.mark.parametrize("name", ["llama", "mistral"])
def test_other_samples_and_the_other_response_change_not_a_bit(name):
    model = tiny(name).eval()
    first, second = make_samples(3, "suffix")

    def others(tokens):
        return [(t + 1) % VOCAB for t in tokens]

    # as long as before: where a row stands in a product may decide how it is rounded
    another = TokenizedSample([others(p) for p in first.prompts], others(first.chosen), others(first.rejected), 0)
    shorter = TokenizedSample([others(p) for p in first.prompts], [7, 8], first.chosen, 0)
    other = TokenizedSample(second.prompts, second.chosen, others(second.rejected), 1)
    with patch_forward(model), torch.no_grad():
        before = packed_logps(model, pack([first, second], sharing="tree"))
        changed = packed_logps(model, pack([first, other], sharing="tree"))
        others_first = packed_logps(model, pack([another, second], sharing="tree"))
        moved = packed_logps(model, pack([shorter, second], sharing="tree"))
    assert torch.equal(before[0], changed[0])
    assert torch.equal(before[1], others_first[1]) and not torch.equal(before[0], others_first[0])
    torch.testing.assert_close(moved[1], before[1], rtol=1e-6, atol=1e-5)
    assert torch.equal(before[1, :, 0], changed[1, :, 0])
    assert not torch.equal(before[1, :, 1], changed[1, :, 1])


@pytest.mark.parametrize("name", ["mixtral", "qwen3_moe"])
def test_experts_round_other_samples_by_their_number_of_tokens_and_no_more(name):
    # the rows of an expert's product are all tokens that are routed to it: another number of rows, another rounding
    model = tiny(name).eval()
    first, second = make_samples(3, "suffix")
    with patch_forward(model), torch.no_grad():
        before = packed_logps(model, pack([first, second], sharing="tree"))
        for shift in range(1, 5):
            prompts = [[(t + shift) % VOCAB for t in p] for p in second.prompts]
            other = TokenizedSample(prompts, second.chosen, second.rejected, 1)
            changed = packed_logps(model, pack([first, other], sharing="tree"))
            torch.testing.assert_close(changed[0], before[0], rtol=1e-6, atol=1e-5)


REFUSED = {
    "gpt_oss": ({**MOE, "sliding_window": 4}, "attention sinks"),
    "qwen3_next": ({}, "linear_attention|recurrent state"),
    "mamba2": ({}, "linear_attention|recurrent state"),
    "bloom": ({}, "position_ids|attn_implementation|ALiBi|does not"),
    "llama4_text": ({**MOE}, "chunked_attention"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_right_is_refused_by_name(name):
    options, message = REFUSED[name]
    if name not in transformers.CONFIG_MAPPING:
        pytest.skip(f"transformers {transformers.__version__} has no {name}")
    sizes = {k: v for k, v in SIZES.items() if k not in ("head_dim",)} if name in ("bloom", "mamba2") else SIZES
    if name == "mamba2":
        sizes = {**sizes, "num_heads": 8, "head_dim": 8, "state_size": 8, "n_groups": 1, "expand": 2}
    config = transformers.AutoConfig.for_model(name, **{**sizes, **options})
    with torch.device("cpu"):
        model = transformers.AutoModelForCausalLM.from_config(config)
    with pytest.raises(ValueError, match=message):
        packed_logps(model.float(), pack(make_samples(2, "prefix"), sharing="pair"))


@pytest.mark.parametrize("name", ["qwen2_moe", "phimoe"])
def test_a_window_that_stands_in_the_mask_alone_is_found_however_long(name):
    # transformers' layers of these are told of no window: 64 is longer than anything that is tried
    options = {**SIZES, **MOE, "sliding_window": 64, "use_sliding_window": True, "max_window_layers": 0}
    config = transformers.AutoConfig.for_model(name, **options)
    if name == "qwen2_moe":
        config.layer_types = ["sliding_attention"] * 2
    model = transformers.AutoModelForCausalLM.from_config(config, attn_implementation="sdpa").float()
    with pytest.raises(ValueError, match="is told of a sliding window of None, but its mask has one of 64"):
        packed_logps(model, pack(make_samples(2, "prefix"), sharing="pair"))
    assert model.config._attn_implementation == "sdpa"


@pytest.mark.parametrize("name", ["qwen2_moe", "phimoe"])
def test_such_a_window_is_refused_by_name_where_the_weights_cannot_be_tried(name, monkeypatch):
    from amopo.trainer import forward

    options = {**SIZES, **MOE, "sliding_window": 64, "use_sliding_window": True, "max_window_layers": 0}
    model = transformers.AutoModelForCausalLM.from_config(transformers.AutoConfig.for_model(name, **options)).float()
    monkeypatch.setattr(forward, "runs_alone", lambda body: False)  # as under ZeRO-3
    with pytest.raises(ValueError, match=f"{name} puts its sliding window of 64 into the attention mask alone"):
        patch_forward(model)
    model.config.sliding_window = None
    patch_forward(model)


def test_a_batch_of_another_row_is_refused():
    model = tiny("llama")
    short, long = (pack(make_samples(2, "prefix", count=n), sharing="pair") for n in (1, 2))
    with (
        patch_forward(model),
        pytest.raises(ValueError, match="layout is of one row of .* tokens, the queries are"),
    ):
        model(input_ids=short.input_ids, position_ids=short.position_ids, amopo_layout=long.layout)


@pytest.mark.parametrize("name", ["opt", "ctrl"])
def test_a_gradient_that_is_zero_but_for_rounding_is_no_difference(name):
    # without rotary embeddings nothing depends on a key's bias
    from amopo.trainer.self_check import compare_with_separate_forwards

    sizes = {
        "opt": {**SIZES, "ffn_dim": 48, "word_embed_proj_dim": SIZES["hidden_size"], "dropout": 0.0},
        "ctrl": {"n_embd": 32, "dff": 48, "n_layer": 2, "n_head": 4, "vocab_size": VOCAB, "n_positions": 64},
    }[name]
    torch.manual_seed(0)
    try:
        model = transformers.AutoModelForCausalLM.from_config(transformers.AutoConfig.for_model(name, **sizes)).float()
        found = compare_with_separate_forwards(model, make_samples(2, "prefix"), sharing="none")
    except ValueError as error:
        pytest.skip(f"refused: {error}")
    assert found.is_exact, str(found)


def around_attention(monkeypatch, function) -> None:
    """Call `function` with the kernel before its arguments, whichever runs on a CPU."""
    from amopo.packing import attention_backends

    for name in ("cpp", "sdpa"):
        around = functools.partial(function, attention_backends.RUN[name])
        monkeypatch.setitem(attention_backends.RUN, name, around)


def test_attention_that_is_a_little_wrong_is_found(monkeypatch):
    from amopo.trainer.self_check import compare_with_separate_forwards

    model = tiny("qwen2")
    assert compare_with_separate_forwards(model, make_samples(3, "suffix"), sharing="tree").is_exact
    with patch_forward(model):  # tried when it was still right
        around_attention(
            monkeypatch, lambda plain, q, k, v, paths, scaling, *rest: plain(q, k, v, paths, 1.01 * scaling, *rest)
        )
        found = compare_with_separate_forwards(model, make_samples(3, "suffix"), sharing="tree")
    assert not found.is_exact and found.gradient > found.allowed_gradient


@pytest.mark.parametrize("name", ["qwen2", "mistral"])
def test_under_autocast_attention_runs_in_half_precision(name, monkeypatch):
    seen = set()

    def spy(plain, q, k, v, *rest):
        seen.update({q.dtype, k.dtype, v.dtype})
        return plain(q, k, v, *rest)

    around_attention(monkeypatch, spy)
    model, samples = tiny(name).eval(), make_samples(3, "suffix")
    with torch.autocast("cpu", torch.bfloat16), torch.no_grad(), patch_forward(model):
        seen.clear()
        got = packed_logps(model, pack(samples, sharing="tree"))
        expected = separate_logps(model, samples)
    assert seen == {torch.bfloat16}
    torch.testing.assert_close(got, expected, rtol=0.02, atol=0.2)


def test_a_model_that_asks_for_sdpa_by_name_keeps_its_attention():
    if "gemma4_text" not in transformers.CONFIG_MAPPING:
        pytest.skip(f"transformers {transformers.__version__} has no gemma4")
    from transformers.models.gemma4 import modeling_gemma4

    if '_attn_implementation == "sdpa"' not in inspect.getsource(modeling_gemma4):
        pytest.skip(f"gemma4 of transformers {transformers.__version__} takes any attention")
    options = {name: value for name, value in SIZES.items() if name != "head_dim"}
    config = transformers.AutoConfig.for_model("gemma4_text", **options)
    model = transformers.AutoModelForCausalLM.from_config(config, attn_implementation="sdpa").float()
    assert attention.install(model) is None and model.config._attn_implementation == "sdpa"


def test_generation_and_plain_calls_are_as_before_while_patched():
    for name in ("llama", "mistral", "gemma2"):
        model = tiny(name).eval()
        ids = torch.randint(3, VOCAB, (2, 9))
        mask = torch.ones_like(ids)
        mask[0, :4] = 0  # left padding, so that a lost mask shows
        arguments = {"max_new_tokens": 6, "do_sample": False, "attention_mask": mask}
        with torch.no_grad():
            logits, generated = model(ids, attention_mask=mask).logits, model.generate(ids, **arguments)
            before = model.config._attn_implementation
            with patch_forward(model):
                assert model.config._attn_implementation.startswith("amopo_tree")
                torch.testing.assert_close(model(ids, attention_mask=mask).logits, logits, rtol=0, atol=0)
                assert model.generate(ids, **arguments).equal(generated)
        assert model.config._attn_implementation == before


def test_a_saved_model_does_not_know_of_it(tmp_path):
    model = tiny("llama")
    with patch_forward(model):
        model.save_pretrained(tmp_path)
    assert "amopo" not in (tmp_path / "config.json").read_text()
    again = transformers.AutoModelForCausalLM.from_pretrained(tmp_path)
    assert again.config._attn_implementation == "sdpa"


def test_a_model_without_transformers_attention_runs_rows_without_sharing(monkeypatch, tmp_path):
    model, samples = tiny("llama"), make_samples(2, "suffix")
    monkeypatch.setattr(type(model), "_supports_attention_backend", False)
    check(model, samples, "none")
    with pytest.raises(ValueError, match="LlamaForCausalLM does not take its attention .* set sharing='none'"):
        AMoPOTrainer(model, tiny_runs.config(tmp_path))
    AMoPOTrainer(model, tiny_runs.config(tmp_path, sharing="none"))
    with pytest.raises(ValueError, match="cannot share tokens; pack with sharing='none'"):
        packed_logps(model, pack(samples, sharing="pair"))


def test_a_flash_kernel_of_its_own_is_not_tried_on_a_cpu_and_that_is_said(monkeypatch, caplog):
    model = tiny("llama")
    monkeypatch.setattr(type(model), "_supports_attention_backend", False)
    model.config._attn_implementation = "flash_attention_2"
    with patch_forward(model):
        assert model.config._attn_implementation == "flash_attention_2"
    assert "flash attention runs in half precision on a GPU only: it was not tried" in caplog.text
