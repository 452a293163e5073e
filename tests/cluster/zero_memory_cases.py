"""Models, rows and DeepSpeed settings of the ZeRO-3 runs, for the worker and for the test that judges it."""

from __future__ import annotations

import dataclasses
from typing import Any

from amopo.memory.settings import RunSettings, SampleShape
from amopo.memory.shapes import BUILT_IN, ModelShape

RANKS = 2


def shape(**changes: Any) -> ModelShape:
    sizes = {
        "layers": 4, "hidden": 256, "intermediate": 768, "heads": 4, "kv_heads": 2, "head_dim": 64, "vocab": 4096,
    }  # fmt: skip
    return dataclasses.replace(BUILT_IN["Qwen2.5-7B"], **{**sizes, **changes})


WIDE = shape(hidden=384, intermediate=1152, heads=6, kv_heads=2, vocab=8192)
FEW = SampleShape(objectives=2, prompt=12, template=4, chosen=16, rejected=12, samples=1)
MANY = SampleShape(objectives=2, prompt=40, template=8, chosen=48, rejected=32, samples=8)
# name -> (model, row, checkpointing, DeepSpeed's limits in numbers or None for its defaults)
CASES: dict[str, tuple[ModelShape, SampleShape, bool, int | None]] = {
    "parameters": (WIDE, FEW, False, None),
    "parameters-short": (WIDE, FEW, False, 300_000),
    "parameters-checkpointed": (WIDE, FEW, True, 3_000_000),
    "parameters-tied": (dataclasses.replace(WIDE, tied=True), FEW, False, None),
    "activations": (shape(vocab=1024), MANY, False, None),
    "activations-checkpointed": (shape(vocab=1024), MANY, True, None),
}


def settings_of(offload: str, checkpointing: bool) -> RunSettings:
    return RunSettings(engine="zero3", gpus=RANKS, checkpointing=checkpointing, offload=offload, device="cpu")


def deepspeed_config(model: ModelShape, offload: str, limits: int | None) -> dict[str, Any]:
    """With what transformers puts for "auto"."""
    square = model.hidden**2
    zero: dict[str, Any] = {
        "stage": 3,
        "reduce_bucket_size": square,
        "stage3_prefetch_bucket_size": int(0.9 * square),
        "stage3_param_persistence_threshold": 10 * model.hidden,
    }
    if limits is not None:
        zero |= {"stage3_max_live_parameters": limits, "stage3_max_reuse_distance": limits}
    if offload != "none":
        zero["offload_optimizer"] = {"device": "cpu"}
    if offload == "all":
        zero["offload_param"] = {"device": "cpu"}
    return {
        "train_micro_batch_size_per_gpu": 1,
        "zero_optimization": zero,
        "bf16": {"enabled": True},
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
        "gradient_clipping": 1.0,
        "steps_per_print": 1000,
    }
