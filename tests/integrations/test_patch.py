"""A patched causal LM returns the log-probs that its own logits hold, and is itself again afterwards."""

import copy
import inspect

import pytest
import tiny_runs
import torch
import transformers
from allocations import AllocationWatch

import amopo
from amopo.trainer.forward import is_patched, patch_forward

MODELS = {
    "qwen2": tiny_runs.qwen2,
    "qwen2-tied": lambda: tiny_runs.qwen2(tie_word_embeddings=True),
    "mistral-window": tiny_runs.mistral,
    "gemma2-softcap": lambda: seeded(
        transformers.Gemma2Config(
            **tiny_runs.SIZES,
            initializer_range=0.2,
            head_dim=8,
            sliding_window=4,
            final_logit_softcapping=3.0,
            attn_implementation="eager",
        )
    ),
    "gpt2": lambda: seeded(transformers.GPT2Config(vocab_size=64, n_embd=32, n_layer=2, n_head=4)),
    "cohere-scale": lambda: seeded(
        transformers.CohereConfig(**tiny_runs.SIZES, initializer_range=0.2, logit_scale=0.25)
    ),
    # ALiBi, no position ids: labels work, layouts cannot
    "bloom": lambda: seeded(transformers.BloomConfig(vocab_size=64, hidden_size=32, n_layer=2, n_head=4)),
}


def seeded(config):
    torch.manual_seed(0)
    return transformers.AutoModelForCausalLM.from_config(config).eval()


def padded_batch(seed=0):
    """Four rows: full, padded on the right, padded on the left, no response at all."""
    ids = torch.randint(3, 64, (4, 9), generator=torch.Generator().manual_seed(seed))
    mask = torch.ones_like(ids)
    mask[1, 6:], mask[2, :2] = 0, 0
    labels = ids.masked_fill(mask == 0, -100)
    labels[:3, :4], labels[3] = -100, -100
    labels[0, 0] = ids[0, 0]  # nothing predicts the first token
    return ids, mask, labels


def expected_logps(model, ids, mask, labels):
    logits = model(input_ids=ids, attention_mask=mask, use_cache=False).logits
    exact = torch.log_softmax(logits[:, :-1].double(), -1).gather(2, ids[:, 1:, None])[..., 0]
    return torch.cat([torch.zeros(len(ids), 1), exact * (labels[:, 1:] != -100)], 1)


@pytest.mark.parametrize("name", MODELS)
def test_labels_give_the_log_probs_and_gradients_of_the_models_own_logits(name):
    model = MODELS[name]()
    ids, mask, labels = padded_batch()
    direction = torch.randn(4, 9, generator=torch.Generator().manual_seed(1))
    expected = expected_logps(model, ids, mask, labels)
    (expected * direction).sum().backward()
    gradients = {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    with amopo.patch(model) as handle:
        assert (handle.why_not_packed is None) == (name != "bloom")
        got = model(input_ids=ids, attention_mask=mask, labels=labels)
        (got * direction).sum().backward()
    assert got.dtype == torch.float32 and got.shape == labels.shape
    assert got._base is None, "on a view, an in-place operation would drop FSDP2's hook without a word"
    torch.testing.assert_close(got.double(), expected, rtol=1e-5, atol=1e-5)
    assert bool((got[:, 0] == 0).all()) and bool((got[3] == 0).all())
    for n, p in model.named_parameters():
        if n in gradients:
            assert (p.grad - gradients[n]).norm() <= 1e-4 * gradients[n].norm() + 1e-9, n


def test_shifted_labels_and_positional_arguments_give_the_same():
    model = tiny_runs.qwen2()
    ids, mask, labels = padded_batch()
    shifted = torch.cat([labels[:, 1:], torch.full((4, 1), -100)], 1)
    with amopo.patch(model), torch.no_grad():
        plain = model(input_ids=ids, attention_mask=mask, labels=labels)
        assert model(ids, mask, labels=labels).equal(plain)
        assert model(ids, mask, shift_labels=shifted)[:, :-1].equal(plain[:, 1:])
        assert model(ids, mask, labels=labels.int(), return_dict=True, use_cache=False).equal(plain)


def test_a_layout_and_labels_give_the_same_loss_as_hidden_states_and_head():
    model, samples = tiny_runs.qwen2(), tiny_runs.samples(3)
    from amopo.integrations.hf import PreferenceCollator

    batch = PreferenceCollator(pad_token_id=0, packed=False)(samples)
    packed = amopo.pack(samples)
    keys = {"sample_ids": packed.sample_ids, "step": 3, "seed": 1}
    padded = {"labels": batch["labels"], "num_objectives": 2, "order": "sample_major", **keys}
    hidden = model.model(batch["input_ids"], batch["attention_mask"]).last_hidden_state
    expected = amopo.fused_loss(hidden, model.lm_head, **padded)
    with amopo.patch(model):
        inputs = {name: batch[name] for name in ("input_ids", "attention_mask", "labels")}
        logps = model(**inputs)
        rows = model(input_ids=packed.input_ids, position_ids=packed.position_ids, amopo_layout=packed.layout)
    for result in (
        amopo.loss_from_logps(logps, **padded),
        amopo.loss_from_logps(logps[:, 1:], **padded),  # as TRL returns them
        amopo.loss_from_logps(rows, packed.layout, **keys),
    ):
        torch.testing.assert_close(result.loss, expected.loss, rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(result.weights, expected.weights, rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(result.sum_logps, expected.sum_logps, rtol=1e-5, atol=1e-4)


def test_everything_else_is_untouched_and_removing_restores_the_model():
    model = tiny_runs.qwen2()
    ids = torch.tensor([[5, 6, 7]])
    signature = inspect.signature(model.forward)
    with torch.no_grad():
        before = model(input_ids=ids).logits
        generated = model.generate(ids, max_new_tokens=4, do_sample=False)
    handle = amopo.patch(model)
    with torch.no_grad():
        assert is_patched(model) and inspect.signature(model.forward) == signature
        assert model(input_ids=ids).logits.equal(before)
        assert model.generate(ids, max_new_tokens=4, do_sample=False).equal(generated)
        other = copy.deepcopy(model)
        other.lm_head.weight.zero_()
        mine, theirs = (m(input_ids=ids, labels=ids) for m in (model, other))
        assert not mine.equal(theirs), "a copy runs its own weights"
    handle.remove()
    handle.remove()
    assert not is_patched(model) and "forward" not in model.__dict__
    assert model(input_ids=ids, labels=ids).loss.dim() == 0


@pytest.mark.parametrize("name", ["qwen2", "bloom"])
def test_compiled_models_give_the_same_values_and_gradients(name):
    torch._dynamo.reset()
    model = MODELS[name]()
    ids, mask, labels = padded_batch()
    with amopo.patch(model):
        expected = model(input_ids=ids, attention_mask=mask, labels=labels)
        expected.sum().backward()
        gradients = {n: p.grad.clone() for n, p in model.named_parameters()}
        model.zero_grad()
        compiled = torch.compile(model, backend="aot_eager")
        got = compiled(input_ids=ids, attention_mask=mask, labels=labels)
        got.sum().backward()
    torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-5)
    for n, p in model.named_parameters():
        assert (p.grad - gradients[n]).norm() <= 1e-4 * gradients[n].norm() + 1e-9, n


def test_a_compiled_model_takes_a_layout():
    torch._dynamo.reset()
    model = tiny_runs.qwen2()
    packed = amopo.pack(tiny_runs.samples(2))
    inputs = {"input_ids": packed.input_ids, "position_ids": packed.position_ids, "amopo_layout": packed.layout}
    compiled = torch.compile(model, backend="aot_eager")
    with amopo.patch(compiled):
        torch.testing.assert_close(compiled(**inputs), model(**inputs), rtol=1e-5, atol=1e-5)


def test_no_logits_are_made():
    model = tiny_runs.qwen2(vocab_size=4096)
    ids, mask, labels = padded_batch()
    with amopo.patch(model, budget=200_000):
        with AllocationWatch(*model.parameters()) as watch:
            model(input_ids=ids, attention_mask=mask, labels=labels).sum().backward()
    logits = 4 * labels.numel() * 4096
    gradient = 4 * model.lm_head.weight.numel()
    assert watch.largest <= max(200_000, gradient) < logits, watch.largest_from


def refused():
    ids, mask, labels = padded_batch()
    packed = amopo.pack(tiny_runs.samples(1))
    yield {"labels": labels, "shift_labels": labels}, "not both"
    yield {"labels": labels, "amopo_layout": packed.layout}, "not two of them"
    yield {"labels": labels[:, :5]}, r"shape of input_ids, \(4, 9\), got \(4, 5\)"
    yield (
        {"labels": labels, "attention_mask": mask[:, :5]},
        r"attention_mask must have the shape .*\(4, 9\), got \(4, 5\)",
    )
    yield {"labels": labels, "use_cache": True}, "use_cache=True has no meaning beside labels"
    yield {"labels": labels, "output_hidden_states": True}, "output_hidden_states=True"
    yield {"labels": labels, "logits_to_keep": 3}, "logits_to_keep=3"


@pytest.mark.parametrize(("arguments", "message"), list(refused()))
def test_arguments_that_ask_for_something_else_are_refused(arguments, message):
    model = tiny_runs.qwen2()
    ids, mask, _ = padded_batch()
    with amopo.patch(model), pytest.raises(ValueError, match=message):
        model(**{"input_ids": ids, "attention_mask": mask, **arguments})


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"budget": 0}, "budget must be a positive number of bytes, got 0"),
        ({"budget": "1GiB"}, "budget must be a positive number of bytes, got '1GiB'"),
        ({"budget": 10}, "budget=10 bytes is too small for one row"),
        ({"logits_dtype": "bf17"}, "logits_dtype must be None, .*, got 'bf17'"),
        ({"logits_dtype": torch.int8}, "logits_dtype must be None, .*, got torch.int8"),
        ({"tensor_parallel": 3}, "tensor_parallel must be a process group, got int"),
    ],
)
def test_options_that_no_call_could_take_are_refused_at_once(options, message):
    model = tiny_runs.qwen2()
    for install in (amopo.patch, patch_forward):
        with pytest.raises((ValueError, TypeError), match=message):
            install(model, **options)
    assert "forward" not in model.__dict__


def test_what_cannot_be_patched_says_why():
    with pytest.raises(TypeError, match="takes a loaded causal LM, got str"):
        amopo.patch("Qwen/Qwen2.5-0.5B")
    with pytest.raises(ValueError, match="no output embeddings"):
        amopo.patch(tiny_runs.qwen2().model)
    with pytest.raises(ValueError, match="nn.DataParallel"):
        amopo.patch(torch.nn.DataParallel(tiny_runs.qwen2()))
    model = tiny_runs.qwen2()
    with amopo.patch(model):
        with pytest.raises(TypeError, match="labels must be an integer tensor"):
            model(input_ids=torch.ones(1, 3, dtype=torch.int64), labels=torch.ones(1, 3))
        batch = amopo.pack(tiny_runs.samples(1))
        with pytest.raises(TypeError, match="the layout of amopo.pack .batch.layout., got PackedBatch"):
            model(input_ids=batch.input_ids, position_ids=batch.position_ids, amopo_layout=batch)
        with pytest.raises(ValueError, match="needs input_ids"):
            model(labels=torch.ones(1, 3, dtype=torch.int64))
        with pytest.raises(RuntimeError, match="outside the vocabulary"):
            model(input_ids=torch.ones(1, 3, dtype=torch.int64), labels=torch.full((1, 3), 64))
    model = MODELS["bloom"]()
    packed = amopo.pack(tiny_runs.samples(1))
    with amopo.patch(model), pytest.raises(ValueError, match="takes labels, not layouts: .*takes no position_ids"):
        model(input_ids=packed.input_ids, position_ids=packed.position_ids, amopo_layout=packed.layout)


def test_a_head_that_does_more_than_its_weight_is_found_by_trying():
    model = tiny_runs.qwen2()
    model.lm_head.register_forward_hook(lambda module, args, output: output * 2 if output.dim() == 3 else output)
    with pytest.raises(ValueError, match="computes its logits in a way that is not supported"):
        amopo.patch(model)


def test_log_probs_of_another_shape_are_refused():
    _, _, labels = padded_batch()
    with pytest.raises(ValueError, match=r"logps must be \[4, 9 or 8\] for labels \(4, 9\), got \(4, 7\)"):
        amopo.loss_from_logps(torch.zeros(4, 7), labels=labels, num_objectives=1)
    with pytest.raises(ValueError, match=r"logps must be \[4, 9\]"):
        amopo.loss_from_logps(torch.zeros(4, 8), shift_labels=labels, num_objectives=1)
    with pytest.raises(ValueError, match="num_objectives"):
        amopo.loss_from_logps(torch.zeros(4, 9), labels=labels)
    with pytest.raises(ValueError, match="exactly one of layout, labels"):
        amopo.loss_from_logps(torch.zeros(4, 9))
    with pytest.raises(ValueError, match="rejected sequence .row 3. has no response token"):
        amopo.loss_from_logps(torch.zeros(4, 9), labels=labels, num_objectives=1, order="sample_major")


def test_what_a_patched_model_does_not_return_is_refused():
    """A forward that was replaced again, and a wrapper that casts."""
    model = tiny_runs.qwen2()
    ids, mask, labels = padded_batch()
    packed = amopo.pack(tiny_runs.samples(2))
    with amopo.patch(model):
        rows = model(input_ids=packed.input_ids, position_ids=packed.position_ids, amopo_layout=packed.layout)
    output = model(input_ids=ids, attention_mask=mask, labels=labels)
    with pytest.raises(TypeError, match="got CausalLMOutputWithPast: is the model patched, .* use_liger_kernel"):
        amopo.loss_from_logps(output, labels=labels, num_objectives=1)
    with pytest.raises(TypeError, match="got CausalLMOutputWithPast: is the model patched"):
        amopo.loss_from_logps(output, packed.layout)
    for dtype in (torch.bfloat16, torch.float16):
        with pytest.raises(TypeError, match=rf"logps are {dtype}, .*output_dtype=None.*logps.float"):
            amopo.loss_from_logps(rows.to(dtype), packed.layout)
    amopo.loss_from_logps(rows.bfloat16().float(), packed.layout)


def test_a_copy_of_a_patched_model_runs_its_own_weights():
    from amopo import TokenizedSample, pack

    model = tiny_runs.qwen2()
    batch = pack([TokenizedSample([[5, 6], [5, 7]], [8, 9], [10], 0)])
    with amopo.patch(model):
        copied = copy.deepcopy(model)
        with torch.no_grad():
            copied.lm_head.weight.mul_(2.0)
            for call in (
                {"input_ids": batch.input_ids},
                {"input_ids": batch.input_ids, "position_ids": batch.position_ids, "amopo_layout": batch.layout},
            ):
                mine, theirs = model(**call), copied(**call)
                mine, theirs = (getattr(found, "logits", found) for found in (mine, theirs))
                assert not torch.allclose(mine, theirs)
