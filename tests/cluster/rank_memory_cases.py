"""Models, rows and settings of the runs that measure memory on real ranks, for the worker and for those who judge it.

A run is `case:offload`, with a name of `CASES`.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any
from unittest import mock

from amopo.memory import zero3
from amopo.memory.known_shapes import BUILT_IN
from amopo.memory.plan import Plan, make_plan
from amopo.memory.settings import RunSettings, SampleShape
from amopo.memory.shapes import ModelShape

RANKS = 2


def shape(**changes: Any) -> ModelShape:
    sizes = {
        "layers": 4, "hidden": 256, "intermediate": 768, "heads": 4, "kv_heads": 2, "head_dim": 64, "vocab": 4096,
    }  # fmt: skip
    return dataclasses.replace(BUILT_IN["Qwen2.5-7B"], **{**sizes, **changes})


WIDE = shape(hidden=384, intermediate=1152, heads=6, kv_heads=2, vocab=8192)
TIED = dataclasses.replace(WIDE, tied=True)
FLAT = shape(vocab=1024)
FEW = SampleShape(objectives=2, prompt=12, template=4, chosen=16, rejected=12, samples=1)
MANY = SampleShape(objectives=2, prompt=40, template=8, chosen=48, rejected=32, samples=8)


@dataclass(frozen=True, kw_only=True)
class Case:
    """limits: of ZeRO-3's gathered weights, in numbers; None for DeepSpeed's defaults."""

    shape: ModelShape
    sample: SampleShape
    engine: str = "zero3"
    checkpointing: bool = False
    limits: int | None = None
    lora: int | None = None
    accumulation: int = 1

    def settings(self, offload: str) -> RunSettings:
        return RunSettings(
            engine=self.engine, gpus=RANKS, checkpointing=self.checkpointing, offload=offload, lora=self.lora,
            accumulation=self.accumulation, device="cpu",
        )  # fmt: skip


CASES = {
    "parameters": Case(shape=WIDE, sample=FEW),
    "parameters-short": Case(shape=WIDE, sample=FEW, limits=300_000),
    "parameters-checkpointed": Case(shape=WIDE, sample=FEW, checkpointing=True, limits=3_000_000),
    "parameters-tied": Case(shape=TIED, sample=FEW),
    "parameters-twice": Case(shape=WIDE, sample=FEW, accumulation=2),
    "activations": Case(shape=FLAT, sample=MANY),
    "activations-checkpointed": Case(shape=FLAT, sample=MANY, checkpointing=True),
    "adapters": Case(shape=WIDE, sample=FEW, lora=16),
    "adapters-short": Case(shape=WIDE, sample=FEW, lora=16, limits=300_000),
    "adapters-twice": Case(shape=FLAT, sample=MANY, lora=64, checkpointing=True, accumulation=2),
    "ddp-twice": Case(engine="ddp", shape=WIDE, sample=FEW, accumulation=2),
    "ddp-adapters-twice": Case(engine="ddp", shape=FLAT, sample=MANY, lora=64, checkpointing=True, accumulation=2),
    "fsdp2": Case(engine="fsdp2", shape=WIDE, sample=FEW),
    "fsdp2-twice": Case(engine="fsdp2", shape=WIDE, sample=FEW, accumulation=2),
    "fsdp2-tied-twice": Case(engine="fsdp2", shape=TIED, sample=FEW, accumulation=2),
    "fsdp2-adapters-twice": Case(engine="fsdp2", shape=FLAT, sample=MANY, lora=64, checkpointing=True, accumulation=2),
}


def parse(run: str) -> tuple[Case, str]:
    name, offload = run.split(":")
    return CASES[name], offload


@contextlib.contextmanager
def limits_of(case: Case) -> Iterator[None]:
    """DeepSpeed's limits on gathered weights, for the plan."""
    limits = case.limits or zero3.MAX_LIVE
    with mock.patch.multiple(zero3, MAX_LIVE=limits, MAX_REUSE=limits):
        yield


def plan_of(run: str) -> Plan:
    case, offload = parse(run)
    with limits_of(case):
        return make_plan(case.shape, case.sample, case.settings(offload), observed=True)


def deepspeed_config(case: Case, offload: str) -> dict[str, Any]:
    """With what transformers puts for "auto"."""
    square = case.shape.hidden**2
    zero: dict[str, Any] = {
        "stage": 3,
        "reduce_bucket_size": square,
        "stage3_prefetch_bucket_size": int(0.9 * square),
        "stage3_param_persistence_threshold": 10 * case.shape.hidden,
    }
    if case.limits is not None:
        zero |= {"stage3_max_live_parameters": case.limits, "stage3_max_reuse_distance": case.limits}
    if offload != "none":
        zero["offload_optimizer"] = {"device": "cpu"}
    if offload == "all":
        zero["offload_param"] = {"device": "cpu"}
    return {
        "train_micro_batch_size_per_gpu": 1,
        "gradient_accumulation_steps": case.accumulation,
        "zero_optimization": zero,
        "bf16": {"enabled": True},
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
        "gradient_clipping": 1.0,
        "steps_per_print": 1000,
    }
