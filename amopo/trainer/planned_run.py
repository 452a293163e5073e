"""A training run in the words of `amopo.memory`: shape, the row that ran, settings, and sizes of numbers.

`planned_run(trainer)` reads them from the model and its parameters as they are, not from what a run of these settings
usually has: weights may be stored in bfloat16 under `bf16=True`, and a frozen base in another dtype than its adapters.

Raises ValueError for what the plan does not know: another DeepSpeed stage than 3, weights that are frozen without LoRA,
more trained weights than LoRA's, float32 adapters on a base of half precision without mixed precision.
"""

from __future__ import annotations

import dataclasses
from collections import Counter
from dataclasses import dataclass
from typing import Any

from torch import nn

from amopo.memory.activations import Row
from amopo.memory.model_states import trained_parts
from amopo.memory.plan import Plan, plan_row
from amopo.memory.precision import Numbers, numbers_of
from amopo.memory.settings import RunSettings, SampleShape
from amopo.memory.shapes import ModelShape, shape_from_config
from amopo.packing.attention import text_config
from amopo.packing.layout import TreeLayout
from amopo.packing.sdpa import kept_mask
from amopo.trainer.forward import causal_lm
from amopo.trainer.identity import class_name, numel

TOLERANCE = 0.02  # of counted parameters: biases and norms that a shape does not know


@dataclass(frozen=True)
class PlannedRun:
    """What `plan_row` takes."""

    shape: ModelShape
    row: Row
    settings: RunSettings
    numbers: Numbers

    def plan(self) -> Plan:
        return plan_row(self.shape, self.row, SampleShape(), self.settings, numbers=self.numbers)

    def with_row_of(self, tokens: int) -> PlannedRun:
        """The same with a row of `tokens` tokens; all but the mask, which is of its longest path, in proportion."""
        sizes = {
            field.name: -(-getattr(self.row, field.name) * tokens // self.row.tokens)
            for field in dataclasses.fields(Row)
        }
        return dataclasses.replace(self, row=Row(**{**sizes, "mask": self.row.mask}))

    def changed(self, numbers: Numbers | None = None, **settings: Any) -> PlannedRun:
        """The same with other settings.

        Raises:
            ValueError: they do not go together.
        """
        changed = dataclasses.replace(self.settings, **settings)
        return dataclasses.replace(self, settings=changed, numbers=numbers or self.numbers)


def planned_run(trainer: Any) -> PlannedRun:
    """How the trainer runs; see the module."""
    args, model = trainer.args, trainer.model
    shape = shape_from_config(text_config(causal_lm(model)).to_dict(), class_name(causal_lm(model)))
    peft = getattr(model, "peft_config", None) or {}
    rank = max((getattr(config, "r", 0) or 0 for config in peft.values()), default=0) or None
    engine = "zero3" if trainer.is_deepspeed_enabled else "fsdp2" if trainer.is_fsdp_enabled else None
    engine = engine or ("ddp" if args.world_size > 1 else "single")
    stored, base = stored_bytes(model)
    _check_trained(model, shape, rank)
    precision, numbers = precision_of(engine, stored, base, lora=rank is not None, mixed=args.bf16 or args.fp16)
    settings = RunSettings(
        engine=engine,
        gpus=args.world_size,
        gpus_per_node=args.world_size,
        accumulation=args.gradient_accumulation_steps,
        precision=precision,
        optimizer="adamw8bit" if "8bit" in str(args.optim) else "adamw",
        offload=_offload(trainer, engine),
        checkpointing=bool(args.gradient_checkpointing or (args.fsdp_config or {}).get("activation_checkpointing")),
        lora=rank,
        head_budget=args.head_budget,
        device="cuda" if args.device.type == "cuda" else "cpu",
    )
    return PlannedRun(shape, row_of_layout(trainer.running_layout, args.tokens_per_batch), settings, numbers)


def stored_bytes(model: nn.Module) -> tuple[int, int]:
    """Bytes per number of the trained and of the frozen weights, those of most of them; the same where none is frozen.

    Raises:
        ValueError: no weight is trained, or they are neither of 16 nor of 32 bits.
    """
    counts: dict[bool, Counter[int]] = {True: Counter(), False: Counter()}
    for parameter in model.parameters():
        counts[parameter.requires_grad][parameter.element_size()] += numel(parameter)
    if not counts[True]:
        raise ValueError("no weight of the model is trained")
    (stored, _), *_ = counts[True].most_common(1)
    base = counts[False].most_common(1)[0][0] if counts[False] else stored
    for size in (stored, base):
        if size not in (2, 4):
            raise ValueError(f"weights of {8 * size} bits are not planned")
    return stored, base


def precision_of(engine: str, stored: int, base: int, *, lora: bool, mixed: bool) -> tuple[str, Numbers]:
    """The precision's name and its sizes, for weights of so many bytes; `mixed`: autocast, or FSDP2's like of it.

    Raises:
        ValueError: it is not planned.
    """
    if engine == "zero3":
        if stored != 2:
            raise ValueError("ZeRO-3 is planned with weights of 16 bits and an fp32 master; set bf16=True")
        return "mixed", numbers_of("mixed", engine, lora=lora)
    if stored == 2:  # autocast has nothing to round
        return "bf16", numbers_of("bf16", engine, lora=lora)
    if not mixed:
        if base == 2:
            raise ValueError("float32 adapters on a base of 16 bits are planned in mixed precision; set bf16=True")
        return "fp32", numbers_of("fp32", engine, lora=lora)
    numbers = numbers_of("mixed", engine, lora=lora)
    if lora and base == 4:
        numbers = dataclasses.replace(numbers, base=4, stream=4 if numbers.autocast else numbers.stream)
    return "mixed", numbers


def _check_trained(model: nn.Module, shape: ModelShape, rank: int | None) -> None:
    trained = sum(numel(parameter) for parameter in model.parameters() if parameter.requires_grad)
    planned = trained_parts(shape, rank).trained
    if rank is None and trained < planned * (1 - TOLERANCE):
        raise ValueError(f"{trained} of {planned} weights are trained, without LoRA")
    if trained > planned * (1 + TOLERANCE):
        kind = "the model has" if rank is None else f"LoRA of rank {rank} on all linear layers has"
        raise ValueError(f"{trained} weights are trained, and {kind} {planned}")


def _offload(trainer: Any, engine: str) -> str:
    if engine == "zero3":
        return offload_of(trainer.args.hf_deepspeed_config)
    if engine == "fsdp2":
        from torch.distributed.fsdp import CPUOffloadPolicy

        return "all" if isinstance(trainer.accelerator.state.fsdp_plugin.cpu_offload, CPUOffloadPolicy) else "none"
    return "none"


def offload_of(deepspeed: Any) -> str:
    """What DeepSpeed's settings put into host memory.

    Raises:
        ValueError: another stage than 3.
    """
    if not deepspeed.is_zero3():
        raise ValueError("of DeepSpeed's stages, 3 is planned")
    devices = {
        name: deepspeed.get_value(f"zero_optimization.offload_{name}.device", "none") for name in ("param", "optimizer")
    }
    if devices["optimizer"] in (None, "none"):
        return "none"
    return "optimizer" if devices["param"] in (None, "none") else "all"


def row_of_layout(layout: TreeLayout | None, tokens: int) -> Row:
    """The row that ran; one of `tokens` tokens that all enter the head, where none has."""
    if layout is None or layout.paths is None:
        tokens = tokens if layout is None else layout.num_tokens
        return Row(tokens=tokens, rows=tokens, keys=tokens, paths=1)
    lengths = layout.paths.lengths
    return Row(
        tokens=int(layout.paths.subtree_end.shape[0]),
        rows=int(layout.row_index.shape[0]),
        keys=sum(keys for _, keys in lengths),
        paths=len(lengths),
        mask=kept_mask(lengths),
    )
