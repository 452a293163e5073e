"""A packed row gives every sequence the log-probs and gradients that it has alone."""

import copy
import inspect

import pytest
import tiny_runs
import torch
import transformers

from amopo.packing import pack
from amopo.trainer import packed_logps, patch_forward
from amopo.trainer.forward import check_head, is_patched

MODELS = {
    "qwen2": tiny_runs.qwen2,
    "qwen2-tied": lambda **c: tiny_runs.qwen2(tie_word_embeddings=True, **c),
    "llama": tiny_runs.llama,
    # the window is shorter than every sequence
    "mistral-window": tiny_runs.mistral,
}


def separate_logps(model, samples):
    """Each sequence in a forward of its own, through the plain logits."""
    sums = []
    for sample in samples:
        for prompt in sample.prompts:
            for response in (sample.chosen, sample.rejected):
                ids = torch.tensor([prompt + response])
                logps = model(input_ids=ids, use_cache=False).logits.log_softmax(-1)
                steps = range(len(prompt) - 1, len(prompt) + len(response) - 1)
                sums.append(sum(logps[0, t, ids[0, t + 1]] for t in steps))
    return torch.stack(sums).view(len(samples), -1, 2)


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("name", MODELS)
def test_packed_equals_separate_forwards_in_values_and_gradients(name, attention):
    samples = tiny_runs.samples(3, longest=9)
    model = MODELS[name](attn_implementation=attention)
    direction = torch.randn(3, 2, 2, generator=torch.Generator().manual_seed(1))

    expected = separate_logps(model, samples)
    (expected * direction).sum().backward()
    expected_grads = {n: p.grad.clone() for n, p in model.named_parameters()}
    model.zero_grad()
    got = packed_logps(model, pack(samples))
    (got * direction).sum().backward()

    torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-5)
    for n, p in model.named_parameters():
        error = (p.grad - expected_grads[n]).norm() / expected_grads[n].norm()
        assert error < 1e-4, (n, float(error))


@pytest.mark.parametrize("name", MODELS)
def test_in_double_precision_only_the_fp32_rotary_and_norm_remain(name):
    samples = tiny_runs.samples(3, longest=9)
    model = MODELS[name]().double()
    with torch.no_grad():
        got, expected = packed_logps(model, pack(samples)), separate_logps(model, samples)
    assert got.dtype == torch.float64
    torch.testing.assert_close(got, expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("name", MODELS)
def test_another_samples_tokens_change_nothing(name):
    samples = tiny_runs.samples(3)
    model = MODELS[name]()
    other = tiny_runs.samples(3, seed=5)
    with torch.no_grad():
        alone = packed_logps(model, pack(samples[1:2]))
        among = packed_logps(model, pack(samples))[1:2]
        among_others = packed_logps(model, pack([other[0], samples[1], other[2]]))[1:2]
        padded = packed_logps(model, pack(samples, pad_to_multiple_of=32))[1:2]
    for result in (among, among_others, padded):
        torch.testing.assert_close(result, alone, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", ["gemma2", "gpt2", "mixtral", "opt"])
def test_other_architectures_are_right_or_refused(name):
    """OPT, for one, is not packed by transformers 5.23: its sequences see each other, which is found by trying."""
    torch.manual_seed(0)
    sizes = {**tiny_runs.SIZES, "initializer_range": 0.2}
    small = {"vocab_size": tiny_runs.VOCAB, "num_hidden_layers": 2, "num_attention_heads": 4}
    configs = {
        "gemma2": lambda: transformers.Gemma2Config(
            **sizes, head_dim=8, sliding_window=4, final_logit_softcapping=3.0, attn_implementation="eager"
        ),
        "gpt2": lambda: transformers.GPT2Config(vocab_size=64, n_embd=32, n_layer=2, n_head=4, initializer_range=0.2),
        "mixtral": lambda: transformers.MixtralConfig(**sizes, num_local_experts=2),
        "opt": lambda: transformers.OPTConfig(
            **small, hidden_size=32, ffn_dim=48, word_embed_proj_dim=32, init_std=0.2, pad_token_id=1
        ),
    }
    model = transformers.AutoModelForCausalLM.from_config(configs[name]()).eval()
    samples = tiny_runs.samples(3, longest=9)
    with torch.no_grad():
        expected = separate_logps(model, samples)
        got = packed_logps(model, pack(samples))
    torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-5)


def test_plain_calls_are_untouched_and_generation_works():
    model = tiny_runs.qwen2()
    signature = inspect.signature(model.forward)
    ids = torch.tensor([[5, 6, 7]])
    with torch.no_grad():
        before = model(input_ids=ids).logits
        generated = model.generate(ids, max_new_tokens=4, do_sample=False)
        with patch_forward(model):
            assert is_patched(model)
            assert inspect.signature(model.forward) == signature
            assert model(input_ids=ids).logits.equal(before)
            assert model(ids, attention_mask=torch.ones_like(ids), use_cache=True).past_key_values is not None
            assert model.generate(ids, max_new_tokens=4, do_sample=False).equal(generated)
    assert not is_patched(model)
    assert "forward" not in model.__dict__


def test_a_copy_of_a_patched_model_runs_its_own_weights():
    model, batch = tiny_runs.qwen2(), pack(tiny_runs.samples(2))
    with patch_forward(model), torch.no_grad():
        copied = copy.deepcopy(model)
        for parameter in copied.parameters():
            parameter.zero_()
        assert not packed_logps(model, batch).allclose(packed_logps(copied, batch))
        ids = torch.tensor([[5, 6]])
        assert not model(input_ids=ids).logits.allclose(copied(input_ids=ids).logits)


def test_patches_stack_and_come_off_in_order():
    model = tiny_runs.qwen2()
    outer, inner = patch_forward(model), patch_forward(model)
    with pytest.raises(RuntimeError, match="was replaced again after patch_forward"):
        outer.remove()
    inner.remove()
    outer.remove()
    outer.remove()
    assert "forward" not in model.__dict__


def test_wrong_calls_say_why():
    model = tiny_runs.qwen2()
    batch = pack(tiny_runs.samples(2))
    row = {"input_ids": batch.input_ids, "position_ids": batch.position_ids, "amopo_layout": batch.layout}
    ones = torch.ones_like(batch.input_ids)
    with patch_forward(model):
        with pytest.raises(ValueError, match="attention_mask must not be passed with a packed row"):
            model(**row, attention_mask=ones)
        with pytest.raises(ValueError, match="use_cache=True must not be passed with a packed row"):
            model(**row, use_cache=True)
        with pytest.raises(ValueError, match="does not support the argument labels"):
            model(**row, labels=batch.input_ids)
        with pytest.raises(ValueError, match="needs input_ids and position_ids"):
            model(input_ids=batch.input_ids, amopo_layout=batch.layout)
        with pytest.raises(ValueError, match="keyword arguments only"):
            model(batch.input_ids, position_ids=batch.position_ids, amopo_layout=batch.layout)
        with pytest.raises(ValueError, match=r"a packed row is \[1, T\]: got input_ids \(2, "):
            model(**{**row, "input_ids": batch.input_ids.repeat(2, 1)})
        assert (
            model(**row, use_cache=False, attention_mask=None, return_dict=True).shape == batch.layout.row_index.shape
        )
    small = tiny_runs.qwen2(vocab_size=20)
    with pytest.raises(ValueError, match="outside the model's vocabulary of 20"):
        packed_logps(small, batch)


def test_data_parallel_is_refused():
    with pytest.raises(ValueError, match="nn.DataParallel cannot run packed rows"):
        patch_forward(torch.nn.DataParallel(tiny_runs.qwen2()))


def test_a_model_that_asked_for_flash_attention_runs_where_it_is_not_installed():
    model, batch = tiny_runs.qwen2(), pack(tiny_runs.samples(2))
    with torch.no_grad():
        expected = packed_logps(model, batch)
        model.config._attn_implementation = "flash_attention_2"
        with patch_forward(model):
            assert model.config._attn_implementation == "amopo_tree_fa2"
            got = packed_logps(model, batch)
    assert model.config._attn_implementation == "flash_attention_2"
    torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-5)


def tiny_of(kind, **options):
    sizes = {**tiny_runs.SIZES, "initializer_range": 0.2, **options}
    return transformers.AutoModelForCausalLM.from_config(transformers.AutoConfig.for_model(kind, **sizes))


def test_a_layer_between_body_and_head_is_found():
    model = tiny_of("modernbert-decoder", global_attn_every_n_layers=1, norm_bias=True)
    with pytest.raises(
        ValueError, match="ModernBertDecoderForCausalLM computes its logits in a way .* nats, more than"
    ):
        check_head(model)
    with pytest.raises(ValueError, match="ModernBertDecoderForCausalLM"):
        patch_forward(model)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    ("kind", "options"),
    [
        ("llama", {}),
        ("qwen2", {"tie_word_embeddings": True}),
        ("gemma2", {"head_dim": 8, "final_logit_softcapping": 3.0}),
        ("cohere", {"logit_scale": 0.25}),
        ("granite", {"logits_scaling": 8.0}),
    ],
)
def test_the_heads_of_known_architectures_pass(kind, options, dtype):
    model = tiny_of(kind, **options).to(dtype).train()
    model.lm_head.eval()
    state = torch.get_rng_state()
    check_head(model)
    assert torch.get_rng_state().equal(state)
    assert model.training and not model.lm_head.training, "every module keeps its mode"


def test_a_change_of_the_logits_is_found(monkeypatch):
    model = tiny_runs.qwen2()
    plain = model.forward

    def scaled(*args, **kwargs):
        output = plain(*args, **kwargs)
        output.logits = output.logits * 1.05
        return output

    model.forward = scaled
    with pytest.raises(ValueError, match="Qwen2ForCausalLM computes its logits"):
        patch_forward(model)
