"""The plan is what the real model code takes, on tensors without storage, under every engine that can be simulated."""

from __future__ import annotations

import dataclasses
import logging

import pytest

pytest.importorskip("transformers")

from amopo.memory.configs import config_of, samples_of
from amopo.memory.known_shapes import BUILT_IN
from amopo.memory.plan import make_plan
from amopo.memory.settings import RunSettings, SampleShape
from amopo.memory.shapes import ModelShape
from amopo.packing import pack

SAMPLE = SampleShape(objectives=2, prompt=96, template=8, chosen=64, rejected=48)
# The promise is 0.05. Most agree to 0.01; the forward of a small Qwen3 with LoRA under FSDP2 is planned 1.35 % high.
ALLOWED = 0.02


def small(family: str, **changes) -> ModelShape:
    """Two layers with the proportions of a real model, small enough for seconds."""
    like = next(shape for shape in BUILT_IN.values() if shape.model_type == family)
    sizes = {
        "layers": 2,
        "hidden": 768,
        "intermediate": 2304,
        "heads": 12,
        "kv_heads": 4,
        "head_dim": 64,
        "vocab": 8192,
    }
    return dataclasses.replace(like, **{**sizes, "tied": False, **changes})


@pytest.fixture(autouse=True)
def quiet(caplog):
    """It would say that weights without storage were not tried."""
    caplog.set_level(logging.ERROR, logger="amopo")


def compare(shape: ModelShape, sample: SampleShape, **settings):
    from amopo.memory.simulate import simulate
    from amopo.trainer.forward import patch_forward

    asked = RunSettings(**settings)
    plan = make_plan(shape, sample, asked, observed=True)
    found = simulate(
        config_of(shape), pack(samples_of(sample), sharing=sample.sharing), patch=patch_forward, engine=asked.engine,
        gpus=asked.gpus, precision=asked.precision, checkpointing=asked.checkpointing, lora=asked.lora,
        accumulation=asked.accumulation,
    )  # fmt: skip
    return plan, found


UNCAPPED = small("gemma2", tied=True, attention_softcap=None)
CASES = [
    (small("qwen2"), "pair", {"precision": "bf16"}),
    (small("qwen2"), "tree", {"precision": "mixed", "checkpointing": True}),
    (small("qwen2", tied=True), "pair", {"precision": "mixed"}),
    (small("qwen3"), "none", {"precision": "mixed", "checkpointing": True}),
    (small("llama"), "pair", {"precision": "fp32"}),
    (small("gemma", tied=True), "pair", {"precision": "bf16", "checkpointing": True}),
    (small("mistral"), "pair", {"engine": "ddp", "gpus": 16, "precision": "mixed"}),
    (small("qwen2"), "tree", {"engine": "ddp", "gpus": 16, "precision": "bf16", "checkpointing": True}),
    (small("llama", tied=True), "none", {"engine": "ddp", "gpus": 2, "precision": "mixed", "checkpointing": True}),
    (small("qwen2"), "pair", {"engine": "fsdp2", "gpus": 32, "precision": "mixed"}),
    (small("qwen2", layers=4), "pair", {"engine": "fsdp2", "gpus": 32, "precision": "mixed", "checkpointing": True}),
    (UNCAPPED, "tree", {"engine": "fsdp2", "gpus": 8, "precision": "mixed", "checkpointing": True}),
    (small("qwen3"), "pair", {"engine": "fsdp2", "gpus": 4, "precision": "bf16"}),
    # no MLP to speak of, so that attention's backward is the largest
    (
        small("qwen3", layers=1, intermediate=128, vocab=512, heads=24, kv_heads=8),
        "tree",
        {"precision": "bf16", "checkpointing": True},
    ),
    # the second micro-batch stands beside the gradients of the first
    (small("qwen2"), "tree", {"precision": "mixed", "checkpointing": True, "accumulation": 2}),
    (small("llama", tied=True), "none", {"engine": "ddp", "gpus": 2, "checkpointing": True, "accumulation": 2}),
    (small("qwen2", layers=4), "pair", {"engine": "fsdp2", "gpus": 2, "checkpointing": True, "accumulation": 2}),
    # more layers between the first and the last
    (small("mistral", layers=5, vocab=512), "none", {"engine": "fsdp2", "gpus": 8, "checkpointing": True}),
]
ADAPTERS = [
    (small("qwen2"), "pair", {"precision": "mixed"}),
    (small("qwen2"), "tree", {"precision": "mixed", "checkpointing": True}),
    (small("llama"), "pair", {"precision": "bf16"}),
    (small("qwen2"), "none", {"engine": "ddp", "gpus": 16, "precision": "mixed", "checkpointing": True}),
    (small("qwen3"), "pair", {"engine": "fsdp2", "gpus": 8, "precision": "mixed"}),
    (small("mistral"), "tree", {"engine": "fsdp2", "gpus": 8, "precision": "mixed", "checkpointing": True}),
]


def assert_agree(shape, sharing, settings):
    sample = dataclasses.replace(SAMPLE, samples=6, sharing=sharing)
    plan, found = compare(shape, sample, **settings)
    assert plan.peak == pytest.approx(found.peak, rel=ALLOWED)
    # what dominates must not hide what does not
    for phase in ("forward", "head", "backward", "step"):
        assert plan.total(phase) == pytest.approx(found.peaks[phase], rel=ALLOWED), phase


@pytest.mark.parametrize("shape, sharing, settings", CASES, ids=lambda value: getattr(value, "model_type", None))
def test_the_plan_is_that_of_the_simulation(shape, sharing, settings):
    assert_agree(shape, sharing, settings)


@pytest.mark.parametrize("shape, sharing, settings", ADAPTERS, ids=lambda value: getattr(value, "model_type", None))
def test_the_plan_of_adapters_over_a_frozen_base_is_that_of_the_simulation(shape, sharing, settings):
    pytest.importorskip("peft")
    assert_agree(shape, sharing, {**settings, "lora": 16})


def test_adapters_leave_no_tensor_of_a_step_behind():
    """The step holds weights, gradients and optimizer state alone; a leaf that a hook kept alive would be there too."""
    pytest.importorskip("peft")
    sample = dataclasses.replace(SAMPLE, samples=6)
    plan, found = compare(small("qwen2"), sample, lora=8, checkpointing=True)
    assert found.peaks["step"] == pytest.approx(plan.total("step"), rel=1e-3)
    trained = 2 * small("qwen2").lora_parameters(8)
    assert found.kinds["step"]["Gradient"] == 4 * trained and found.kinds["step"]["Optstate"] >= 8 * trained


def test_a_rank_of_many_holds_less_and_the_simulation_sees_it():
    sample = dataclasses.replace(SAMPLE, samples=2)
    alone = compare(small("qwen2"), sample, precision="mixed")[1]
    sharded = compare(small("qwen2"), sample, engine="fsdp2", gpus=32, precision="mixed")[1]
    assert sharded.peaks["step"] == pytest.approx(alone.peaks["step"] / 32, rel=0.01)


def test_the_workspace_of_the_head_is_in_the_simulation(monkeypatch):
    """fp32 logits of a chunk live inside an opaque operator: without their formula the peak would be too small."""
    from amopo.memory.simulate import _OperatorWatch

    sample = dataclasses.replace(SAMPLE, samples=6)
    shape = small("qwen2", vocab=65536)
    plan, whole = compare(shape, sample, precision="bf16")
    assert whole.peaks["head"] == pytest.approx(plan.total("head"), rel=ALLOWED)
    monkeypatch.setattr(
        _OperatorWatch, "_held", lambda self, size, func, args, kwargs, *, inside: func(*args, **kwargs)
    )
    _, bare = compare(shape, sample, precision="bf16")
    assert bare.peaks["head"] < (1 - 4 * ALLOWED) * plan.total("head")
    assert bare.peaks["step"] == whole.peaks["step"]


def test_an_engine_without_a_simulation_is_refused():
    from amopo.memory.simulated_engines import wrap

    with pytest.raises(ValueError, match="zero3.* cannot be simulated; single, ddp, fsdp2 can"):
        wrap(None, engine="zero3", mesh=None, precision="mixed")


def test_attention_with_a_softcap_is_refused():
    """torch's varlen operator, which the simulation runs, would leave it out."""
    with pytest.raises(ValueError, match="attention with a softcap .50.0. cannot be simulated"):
        compare(small("gemma2", tied=True), SAMPLE)
