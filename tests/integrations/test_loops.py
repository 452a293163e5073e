"""The loops of the examples train, and accelerate changes neither batches nor numbers."""

import plain_loop
import pytest
import tiny
import tiny_runs
import torch
from torch.utils.data import DataLoader

import amopo
from amopo.integrations.hf import PreferenceCollator

accelerate = pytest.importorskip("accelerate")


@pytest.fixture
def accelerator():
    """Makes Accelerators, whose state is shared by the process, one after another."""

    def make(**settings):
        accelerate.state.AcceleratorState._reset_state(True)
        return accelerate.Accelerator(cpu=True, **settings)

    yield make
    accelerate.state.AcceleratorState._reset_state(True)
    accelerate.state.GradientState._reset_state()


def test_the_plain_loop_raises_margins(capsys):
    model, tokenizer = tiny.load()
    result = plain_loop.train(model, tiny.samples(tokenizer)[:8], epochs=4)
    assert float(result.metrics["rewards/margins"].min()) > 0.1 and float(result.loss) < 0.69
    assert capsys.readouterr().out.count("margins") == 4


def test_the_plain_loop_is_30_lines():
    import inspect

    lines = [line for line in inspect.getsource(plain_loop).splitlines() if line.strip()]
    assert len(lines[lines.index("import argparse") :]) <= 30, "imports, loop and main together"


def step(model, batch, backward):
    ids = batch["amopo_sample_ids"]
    if "amopo_layout" in batch:
        logps = model(
            input_ids=batch["input_ids"], position_ids=batch["position_ids"], amopo_layout=batch["amopo_layout"]
        )
        result = amopo.loss_from_logps(logps, batch["amopo_layout"], sample_ids=ids, step=0)
    else:
        inputs = {name: batch[name] for name in ("input_ids", "attention_mask", "labels")}
        logps = model(**inputs)
        result = amopo.loss_from_logps(
            logps, labels=batch["labels"], num_objectives=2, order="sample_major", sample_ids=ids, step=0
        )
    backward(result.loss)
    return logps, result.loss


@pytest.mark.parametrize("packed", [True, False], ids=["packed", "padded"])
def test_a_prepared_loop_has_the_gradients_of_a_plain_one(accelerator, packed):
    samples = tiny_runs.samples(4)
    collator = PreferenceCollator() if packed else PreferenceCollator(pad_token_id=0, packed=False)
    plain = tiny_runs.qwen2()
    amopo.patch(plain)
    for start in (0, 2):  # two micro-batches of one step
        step(plain, collator(samples[start : start + 2]), lambda loss: (loss / 2).backward())

    engine = accelerator(gradient_accumulation_steps=2)
    model = tiny_runs.qwen2()
    handle = amopo.patch(model)
    wrapped, loader = engine.prepare(model, DataLoader(samples, batch_size=2, collate_fn=collator))
    for batch in loader:
        with engine.accumulate(wrapped):
            step(wrapped, batch, engine.backward)
    for (name, p), q in zip(model.named_parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(p.grad, q.grad, rtol=1e-5, atol=1e-7, msg=name)
    assert engine.unwrap_model(wrapped) is model
    handle.remove()
    assert model(input_ids=torch.tensor([[3, 4]])).logits.shape == (1, 2, 64)


def test_mixed_precision_leaves_the_patch_and_fp32_log_probs(accelerator):
    samples = tiny_runs.samples(2)
    collator = PreferenceCollator()
    exact = tiny_runs.qwen2()
    amopo.patch(exact)
    expected, _ = step(exact, collator(samples), lambda loss: loss.backward())
    engine = accelerator(mixed_precision="bf16")
    model = tiny_runs.qwen2()
    amopo.patch(model)
    wrapped = engine.prepare(model)
    got, _ = step(wrapped, collator(samples), engine.backward)
    assert got.dtype == torch.float32
    assert 0 < float((got - expected).detach().abs().max()) < 0.2, "bf16, and not fp32"
    assert model.lm_head.weight.grad.dtype == torch.float32
    kept = engine.unwrap_model(wrapped, keep_fp32_wrapper=False)
    assert step(kept, collator(samples), lambda loss: None)[0].equal(expected)
