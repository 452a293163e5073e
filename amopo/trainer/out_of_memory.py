"""Out of memory in training: what is said of it.

Contract
--------
`explained(error, trainer)` gives a `torch.OutOfMemoryError` whose message says what was asked for, what the plan of
`amopo.memory` makes of the row that ran, and up to three settings that would fit by that plan; where it finds none, or
the device has no known limit (a CPU), those that take least. Every one of them takes less than the run by the plan and
can be run: no budget is below the longest sample, and what needs a package is named where the package is there.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch

from amopo.memory.exhausted import usable_bytes
from amopo.memory.precision import Numbers, numbers_of
from amopo.trainer.forward import causal_lm
from amopo.trainer.planned_run import PlannedRun, planned_run, precision_of

GIB = 1 << 30
RANK = 16  # of the LoRA that is proposed
SMALL_HEAD = 256 << 20


@dataclass(frozen=True)
class Option:
    """One change of the trainer's settings, the run that it gives, and the peak that is planned for that."""

    label: str
    run: PlannedRun
    peak: int


def explained(error: BaseException, trainer: Any) -> torch.OutOfMemoryError:
    """The same error, with what the plan says of the row that ran."""
    asked = " ".join(str(error).split("\n")[0].split()).rstrip(".")
    said = [f"out of memory in optimizer step {trainer.state.global_step + 1}: {asked}"]
    try:
        said += _plans_view(trainer)
    except ValueError as reason:  # a model or a run that cannot be planned
        said.append(f"there is no plan for this run ({reason}); lower tokens_per_batch or set gradient_checkpointing")
    return torch.OutOfMemoryError(". ".join(said))


def _plans_view(trainer: Any) -> list[str]:
    now = planned_run(trainer)
    plan, limit = now.plan(), usable_bytes(trainer.args.device)
    phases = ", ".join(f"{phase} {_size(plan.total(phase))}" for phase in plan.phases if phase != "load")
    said = [f"By the plan a row of {now.row.tokens} tokens takes {_size(plan.peak)} ({phases})"]
    if limit is not None:
        said[0] += f" of {_size(limit)}"
    found = options(now, trainer)
    fitting = [] if limit is None else [option for option in found if option.peak <= limit]
    chosen = (fitting or sorted(found, key=lambda option: option.peak))[:3]
    if chosen:
        word = "These would fit" if fitting else "These take least"
        if limit is not None and not fitting:
            word = "Of the settings that were planned none fits; these take least"
        said.append(f"{word}: " + "; ".join(f"{option.label} ({_size(option.peak)})" for option in chosen))
    return said


def _size(count: int) -> str:
    return f"{count / GIB:.2f} GiB" if count >= GIB // 10 else f"{count / (1 << 20):.1f} MiB"


def options(now: PlannedRun, trainer: Any) -> list[Option]:
    """What would take less than the run as it is, by the plan; the settings that change least first."""
    most = now.plan().peak
    found = []
    for label, make in _changes(now, trainer):
        try:
            run = make()
            peak = run.plan().peak
        except ValueError:  # not with the other settings, or a head budget that holds no row
            continue
        if peak < most:
            found.append(Option(label, run, peak))
    return found


def _changes(now: PlannedRun, trainer: Any) -> Iterator[tuple[str, Any]]:
    """(label, function that makes the changed run) of what this trainer can run."""
    settings = now.settings
    budgets = smaller_budgets(trainer.args.tokens_per_batch, now.row.tokens, trainer.longest_sample)
    can_checkpoint = not settings.checkpointing and getattr(
        causal_lm(trainer.model), "supports_gradient_checkpointing", False
    )
    again = "gradient_checkpointing=True"
    if can_checkpoint:
        yield again, lambda: now.changed(checkpointing=True)
    for tokens in budgets:
        yield f"tokens_per_batch={tokens}", lambda tokens=tokens: now.with_row_of(tokens)
    if can_checkpoint:
        for tokens in budgets:
            label = f"{again} with tokens_per_batch={tokens}"
            yield label, lambda tokens=tokens: now.with_row_of(tokens).changed(checkpointing=True)
    if settings.head_budget is None:
        yield f"head_budget={SMALL_HEAD}", lambda: now.changed(head_budget=SMALL_HEAD)
    # bitsandbytes fails on FSDP2's shards; DeepSpeed takes its optimizer from its own settings
    if settings.optimizer == "adamw" and settings.device == "cuda" and settings.engine in ("single", "ddp"):
        if _is_installed("bitsandbytes"):
            yield "optim='adamw_bnb_8bit'", lambda: now.changed(optimizer="adamw8bit")
    if settings.lora is None and _is_installed("peft"):
        presumed, precision, numbers = _lora(now, trainer.args)
        label = f"LoRA of rank {RANK} ({presumed})"
        adapters = {"lora": RANK, "precision": precision, "numbers": numbers}
        yield label, lambda: now.changed(**adapters)
        if can_checkpoint:
            yield f"{label} with {again}", lambda: now.changed(checkpointing=True, **adapters)
        both = settings.checkpointing or can_checkpoint
        for tokens in budgets:
            words = [again] if can_checkpoint else []
            yield (
                f"{label} with {' and '.join([*words, f'tokens_per_batch={tokens}'])}",
                lambda tokens=tokens: now.with_row_of(tokens).changed(checkpointing=both, **adapters),
            )


def _lora(now: PlannedRun, args: Any) -> tuple[str, str, Numbers]:
    """What LoRA presumes in words, its precision and sizes; adapters are float32, as peft makes them."""
    engine = now.settings.engine
    if engine == "zero3":
        return "on the base that DeepSpeed has in 16 bits", "mixed", numbers_of("mixed", engine, lora=True)
    if args.bf16:
        return "on a base loaded in bfloat16", "mixed", numbers_of("mixed", engine, lora=True)
    if now.numbers.stored == 2 and not args.fp16:
        return "on the base in 16 bits, with bf16=True", "mixed", numbers_of("mixed", engine, lora=True)
    base = now.numbers.stored
    precision, numbers = precision_of(engine, 4, base, lora=True, mixed=args.fp16)
    return f"on the base in {8 * base} bits, as it is loaded", precision, numbers


def smaller_budgets(budget: int, row: int, longest: int) -> list[int]:
    """Halves of the budget that still hold the longest sample, or else just that; below the row that ran."""
    found = [budget // parts for parts in (2, 4, 8) if budget // parts >= longest]
    return [tokens for tokens in found or [longest] if tokens < row]


def _is_installed(package: str) -> bool:
    return importlib.util.find_spec(package) is not None
