"""Out of memory: what is said of it, and the token budget that is lowered before the first step.

Contract
--------
`explained(error, trainer)` gives a `torch.OutOfMemoryError` whose message says what was asked for, what the plan of
`amopo.memory` makes of the row that ran, and up to three settings that would fit by that plan.
`is_out_of_memory(error)` knows CUDA's error and the CPU allocator's.

`fit_budget(trainer)` (setting `auto_budget`) runs forward and backward of this rank's largest batch, with the
optimizer's state set aside, and halves `tokens_per_batch` on all ranks, with a warning, until it fits. It happens
before the first step, and never later: a budget that changed in mid-run would change what is trained. Random numbers
that the attempt draws are given back. Sharded models raise, since a rank that fails alone would leave the others
waiting.
"""

from __future__ import annotations

import dataclasses
import gc
import logging
from typing import Any

import torch
from torch import Tensor

from amopo.memory.activations import Row
from amopo.memory.plan import Plan, plan_row
from amopo.memory.settings import RunSettings, SampleShape
from amopo.memory.shapes import ModelShape, shape_from_config
from amopo.packing.attention import text_config
from amopo.packing.layout import TreeLayout
from amopo.trainer.forward import causal_lm
from amopo.trainer.identity import class_name

logger = logging.getLogger(__name__)
GIB = 1 << 30
_CPU_MESSAGES = ("DefaultCPUAllocator: can't allocate memory", "DefaultCPUAllocator: not enough memory")


def is_out_of_memory(error: BaseException) -> bool:
    """Whether a device, or the CPU's allocator, had no memory left."""
    return isinstance(error, torch.OutOfMemoryError) or (
        isinstance(error, RuntimeError) and any(text in str(error) for text in _CPU_MESSAGES)
    )


def explained(error: BaseException, trainer: Any) -> torch.OutOfMemoryError:
    """The same error, with what the plan says of the row that ran."""
    asked = " ".join(str(error).split("\n")[0].split()).rstrip(".")
    layout: TreeLayout | None = trainer.running_layout
    said = [f"out of memory in optimizer step {trainer.state.global_step + 1}: {asked}"]
    try:
        said += _plans_view(trainer, layout)
    except ValueError as reason:  # a model that cannot be planned
        said.append(f"there is no plan for this model ({reason}); lower tokens_per_batch or set gradient_checkpointing")
    return torch.OutOfMemoryError(". ".join(said))


def _plans_view(trainer: Any, layout: TreeLayout | None) -> list[str]:
    args = trainer.args
    shape = shape_from_config(text_config(causal_lm(trainer.model)).to_dict(), class_name(causal_lm(trainer.model)))
    settings = settings_of(trainer)
    row = _row(layout, args.tokens_per_batch)
    now = _plan(shape, row, settings)
    phases = ", ".join(f"{phase} {_size(now.total(phase))}" for phase in now.phases if phase != "load")
    said = [f"By the plan a row of {row.tokens} tokens takes {_size(now.peak)} ({phases})"]
    limit = _limit(args.device)
    if limit is not None:
        said[0] += f" of {_size(limit)}"
    options = _options(shape, row, settings, args)
    fitting = [(label, peak) for label, peak in options if limit is None or peak <= limit]
    # Without a limit, or where nothing fits, what comes closest.
    chosen = fitting[:3] if limit is not None and fitting else sorted(options, key=lambda option: option[1])[:3]
    word = "These would fit" if limit is not None and fitting else "These take least"
    if chosen:
        said.append(f"{word}: " + "; ".join(f"{label} ({_size(peak)})" for label, peak in chosen))
    return said


def _size(count: int) -> str:
    return f"{count / GIB:.2f} GiB" if count >= GIB // 10 else f"{count / (1 << 20):.1f} MiB"


def _plan(shape: ModelShape, row: Row, settings: RunSettings) -> Plan:
    return plan_row(shape, row, SampleShape(), settings)


def settings_of(trainer: Any) -> RunSettings:
    """How the trainer runs, in the plan's words."""
    args, model = trainer.args, trainer.model
    weights = [p.dtype for p in model.parameters()]
    half = any(dtype in (torch.bfloat16, torch.float16) for dtype in weights)
    peft = getattr(model, "peft_config", None) or {}
    rank = max((getattr(config, "r", 0) or 0 for config in peft.values()), default=0)
    engine = "zero3" if trainer.is_deepspeed_enabled else "fsdp2" if trainer.is_fsdp_enabled else None
    offload = _offload(args.hf_deepspeed_config) if engine == "zero3" else "none"
    engine = engine or ("ddp" if args.world_size > 1 else "single")
    mixed = args.bf16 or args.fp16 or engine == "zero3" or (half and rank > 0)
    return RunSettings(
        engine=engine,
        gpus=args.world_size,
        gpus_per_node=args.world_size,
        precision="mixed" if mixed else "bf16" if half else "fp32",
        optimizer="adamw8bit" if "8bit" in str(args.optim) else "adamw",
        offload=offload,
        checkpointing=bool(args.gradient_checkpointing),
        lora=rank or None,
        head_budget=args.head_budget,
        device="cuda" if args.device.type == "cuda" else "cpu",
    )


def _offload(deepspeed: Any) -> str:
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


def _row(layout: TreeLayout | None, tokens: int) -> Row:
    if layout is None or layout.paths is None:
        return Row(tokens=tokens, rows=tokens, keys=tokens, paths=1)
    lengths = layout.paths.lengths
    return Row(
        tokens=int(layout.paths.subtree_end.shape[0]),
        rows=int(layout.row_index.shape[0]),
        keys=sum(keys for _, keys in lengths),
        paths=len(lengths),
        mask=sum(queries * keys for queries, keys in lengths if queries != keys),
    )


def _shrunk(row: Row, parts: int) -> Row:
    return Row(*(-(-getattr(row, field.name) // parts) for field in dataclasses.fields(Row)))


def _options(shape: ModelShape, row: Row, settings: RunSettings, args: Any) -> list[tuple[str, int]]:
    """Settings of the trainer with the peaks that the plan gives them, the ones that change least first."""
    found = []

    def add(label: str, changed_row: Row, **changes: Any) -> None:
        try:
            found.append((label, _plan(shape, changed_row, dataclasses.replace(settings, **changes)).peak))
        except ValueError:
            return

    halves = [(f"tokens_per_batch={args.tokens_per_batch // parts}", _shrunk(row, parts)) for parts in (2, 4, 8)]
    if not settings.checkpointing:
        add("gradient_checkpointing=True", row, checkpointing=True)
    for label, smaller in halves:
        add(label, smaller)
    if not settings.checkpointing:
        for label, smaller in halves:
            add(f"gradient_checkpointing=True with {label}", smaller, checkpointing=True)
    if settings.optimizer == "adamw" and settings.device == "cuda":
        add("optim='adamw_bnb_8bit'", row, optimizer="adamw8bit")
    if settings.lora is None:
        add("LoRA of rank 16", row, lora=16)
        add("LoRA of rank 16 with gradient_checkpointing=True", row, lora=16, checkpointing=True)
    return found


def _limit(device: torch.device) -> int | None:
    return torch.cuda.get_device_properties(device).total_memory if device.type == "cuda" else None


# before the first step ------------------------------------------------------------------------------------------------


def fit_budget(trainer: Any) -> None:
    """Halve `tokens_per_batch` until the largest batch runs.

    Raises:
        ValueError: a sharded model. torch.OutOfMemoryError: the smallest budget that holds the longest sample does not
        run either.
    """
    if trainer.is_deepspeed_enabled or trainer.is_fsdp_enabled:
        raise ValueError(
            "auto_budget tries batches on each rank alone, which a sharded model cannot; set tokens_per_batch by "
            "`amopo memory plan` and leave auto_budget out"
        )
    while True:
        error = _tried(trainer)
        failed = torch.tensor(int(error is not None), device=trainer.args.device)
        if int(trainer._all_reduce(failed)) == 0:
            return
        smaller = trainer.args.tokens_per_batch // 2
        longest = max(trainer.train_lengths)
        if smaller < longest:
            reason = error or RuntimeError("another rank ran out of memory")
            raise explained(reason, trainer) from error
        logger.warning(
            "auto_budget: a row of tokens_per_batch=%d does not fit; going on with tokens_per_batch=%d",
            trainer.args.tokens_per_batch, smaller,
        )  # fmt: skip
        trainer.args.tokens_per_batch = smaller
        trainer.plan_batches()


def _tried(trainer: Any) -> BaseException | None:
    """Forward and backward of the largest batch; the error if there was no memory for it."""
    device = trainer.args.device
    reserved: Tensor | None = None
    inputs: dict[str, Any] | None = None
    result: Any = None
    mode = trainer.model.training
    try:
        trained = [p for p in trainer.model.parameters() if p.requires_grad]
        reserved = torch.empty(sum(2 * p.nbytes for p in trained), dtype=torch.uint8, device=device)
        inputs = trainer._prepare_inputs(trainer.largest_batch())
        trainer.running_layout = inputs["amopo_layout"]
        trainer.model.train()
        devices = [device] if device.type == "cuda" else []
        with torch.random.fork_rng(devices), trainer.accelerator.autocast():
            result = trainer._run(trainer.model, inputs, step=0)
            result.loss.backward()
        return None
    except (torch.OutOfMemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        # Its traceback holds the frames, and so the tensors, of the attempt.
        return error.with_traceback(None)
    finally:
        reserved = inputs = result = None  # noqa: F841
        trainer.model.zero_grad(set_to_none=True)
        trainer.model.train(mode)
        gc.collect()
        if device.type == "cuda":
            torch.cuda.empty_cache()
