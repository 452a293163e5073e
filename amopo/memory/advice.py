"""What follows from plans: the largest token budget that fits, the change that frees most, the smallest cluster."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterator
from dataclasses import dataclass

from amopo.memory.methods import plan_method
from amopo.memory.plan import Plan, make_plan
from amopo.memory.settings import RunSettings, SampleShape
from amopo.memory.shapes import ModelShape
from amopo.memory.workload import row_of

MOST_SAMPLES = 1 << 20
MOST_GPUS = 4096


@dataclass(frozen=True)
class Change:
    """One setting changed, and the peak that it gives."""

    label: str
    peak: int
    freed: int
    fits: bool


def largest_samples(
    shape: ModelShape,
    sample: SampleShape,
    settings: RunSettings,
    *,
    limit: int,
    context: int = 0,
    method: str | None = None,
) -> int:
    """The most samples in one row whose plan stays within `limit` bytes; 0 if not even one does.

    Args:
        method: one of `methods.METHODS` (default: AMoPO with the sample's sharing).
    """
    method = method or f"amopo {sample.sharing}"

    def fits(samples: int) -> bool:
        several = dataclasses.replace(sample, samples=samples)
        return plan_method(method, shape, several, settings, context=context).peak <= limit

    if not fits(1):
        return 0
    low, high = 1, 2
    while high <= MOST_SAMPLES and fits(high):
        low, high = high, 2 * high
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if fits(middle) else (low, middle)
    return low


def largest_tokens(
    shape: ModelShape, sample: SampleShape, settings: RunSettings, *, limit: int, context: int = 0
) -> int:
    """The same as a budget in tokens (`tokens_per_batch`)."""
    samples = largest_samples(shape, sample, settings, limit=limit, context=context)
    return row_of(dataclasses.replace(sample, samples=samples)).tokens if samples else 0


def changes(
    shape: ModelShape, sample: SampleShape, settings: RunSettings, *, limit: int | None = None, context: int = 0
) -> list[Change]:
    """Every single change that frees something, the one that frees most first."""
    now = make_plan(shape, sample, settings, context=context).peak
    found = []
    for label, changed_sample, changed in _alternatives(sample, settings):
        try:
            peak = make_plan(shape, changed_sample, changed, context=context).peak
        except ValueError:  # a head budget that does not hold one row
            continue
        if peak < now:
            found.append(Change(label, peak, now - peak, limit is None or peak <= limit))
    return sorted(found, key=lambda change: change.peak)


def _alternatives(sample: SampleShape, settings: RunSettings) -> Iterator[tuple[str, SampleShape, RunSettings]]:
    def setting(label: str, **values: object) -> Iterator[tuple[str, SampleShape, RunSettings]]:
        try:
            yield label, sample, dataclasses.replace(settings, **values)
        except ValueError:  # not with the other settings
            return

    if not settings.checkpointing:
        yield from setting("--checkpointing", checkpointing=True)
    if settings.accumulation > 1:
        yield from setting("--accumulate 1", accumulation=1)
    if settings.lora is None:
        yield from setting("--lora 16", lora=16)
    if settings.optimizer == "adamw":
        yield from setting("--optimizer adamw8bit", optimizer="adamw8bit")
    if settings.precision != "bf16":
        yield from setting("--precision bf16", precision="bf16")
    if settings.gpus > 1 and settings.engine == "ddp":
        yield from setting("--engine fsdp2", engine="fsdp2")
        yield from setting("--engine zero3", engine="zero3")
    if settings.engine == "single":
        node = settings.gpus_per_node
        yield from setting(f"--gpus {node} --engine fsdp2", gpus=node, engine="fsdp2")
    elif settings.sharded:
        more = next(gpus for gpus in _clusters(settings.gpus_per_node) if gpus >= 2 * settings.gpus)
        yield from setting(f"--gpus {more}", gpus=more)
    for offload in ("optimizer", "all"):
        if settings.offload == "none":
            yield from setting(f"--offload {offload}", offload=offload)
    order = ("none", "pair", "tree")
    for sharing in order[order.index(sample.sharing) + 1 :]:
        yield f"--sharing {sharing}", dataclasses.replace(sample, sharing=sharing), settings
    if sample.samples > 1:
        half = dataclasses.replace(sample, samples=sample.samples // 2)
        yield f"--tokens {row_of(half).tokens}", half, settings
    if settings.head_budget is None:
        yield from setting(f"--head-budget {256 << 20}", head_budget=256 << 20)


def _clusters(gpus_per_node: int) -> Iterator[int]:
    """Numbers of GPUs, from one: any number of a node, then whole nodes."""
    yield from range(1, gpus_per_node)
    yield from itertools.count(gpus_per_node, gpus_per_node)


def smallest_cluster(
    shape: ModelShape, sample: SampleShape, settings: RunSettings, *, limit: int, context: int = 0
) -> Plan | None:
    """The plan with the fewest GPUs whose peak stays within `limit`; one GPU runs without an engine.

    Tried are any number of GPUs of one node, and whole nodes. None where more GPUs do not help: ddp holds all states on
    each, and the activations of one rank's row are the same in any cluster; or where the optimizer is not for several.
    """
    for gpus in itertools.takewhile(lambda gpus: gpus <= MOST_GPUS, _clusters(settings.gpus_per_node)):
        engine = settings.engine if settings.engine != "single" else "fsdp2"
        if gpus == 1 and settings.offload == "none":
            engine = "single"
        if engine == "ddp" and gpus > 2:  # the same on each, however many there are
            return None
        if engine in ("fsdp2", "zero3") and settings.optimizer == "adamw8bit":  # they refuse it
            return None
        plan = make_plan(shape, sample, dataclasses.replace(settings, engine=engine, gpus=gpus), context=context)
        if plan.peak <= limit:
            return plan
    return None
