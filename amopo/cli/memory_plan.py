"""`amopo memory plan`: memory of a training step by phase, computed; what fits, and what would.

Prints the peak of every phase by component, the same samples by other methods, and, with a GPU's size, whether it fits,
the largest token budget, the single changes that free most, and with `--find` the smallest cluster that fits.
`--json` prints the same as one JSON object, in bytes.
"""

from __future__ import annotations

import dataclasses
import json
from typing import Any

from amopo.cli.errors import UsageError
from amopo.cli.memory_options import (
    accumulate_option,
    gib,
    gpu_memory_of,
    run_options,
    sample_of,
    settings_of,
    shape_from,
    shape_record,
    size,
    table,
)
from amopo.cli.models import need
from amopo.cli.options import Option, Settings
from amopo.memory.advice import changes, largest_samples, largest_tokens, smallest_cluster
from amopo.memory.methods import METHODS, plan_method
from amopo.memory.phases import PHASES
from amopo.memory.plan import COMPONENTS, Plan, make_plan
from amopo.memory.settings import RunSettings

DESCRIPTION = "Memory of a training step on one GPU, computed from the sizes of model, samples and cluster."


def options() -> list[Option]:
    return [
        *run_options(),
        accumulate_option(),
        Option("gpu_memory", str | None, "of one GPU: 80GB (10^9 bytes), 80GiB", default=None, metavar="SIZE"),
        Option("context", str, "what CUDA and its libraries take beside tensors; not measured here", default="1GiB"),
        Option("find", bool, "the smallest cluster of such GPUs that fits", default=False),
        Option("picture", str | None, "also draw the plan into this PNG file", default=None, metavar="FILE"),
        Option("json", bool, "one JSON object, in bytes", default=False),
    ]


def run(settings: Settings) -> None:
    plan, result = answer(settings)
    if settings.picture is not None:
        need("matplotlib", "plot")
        from amopo.report.memory import write_plan

        write_plan(result, settings.picture)
    if settings.json:
        print(json.dumps(result, indent=1))
    else:
        print(_text(plan, result))


def answer(settings: Settings) -> tuple[Plan, dict[str, Any]]:
    """The plan, and what `--json` prints."""
    shape, sample, asked = shape_from(settings), sample_of(settings), settings_of(settings)
    context = size(settings.context, "--context", least=0)
    limit = gpu_memory_of(settings)
    if settings.find and limit is None:
        raise UsageError("--find needs the size of a GPU; give --gpu-memory")
    plan = make_plan(shape, sample, asked, context=context)
    methods = {name: plan_method(name, shape, sample, asked, context=context) for name in METHODS}
    result = _record(plan, methods, limit, context)
    if settings.find:
        found = smallest_cluster(shape, sample, asked, limit=limit, context=context)
        result["smallest_cluster"] = None if found is None else {
            "gpus": found.settings.gpus, "engine": found.settings.engine, "peak": found.peak, "host": found.host,
        }  # fmt: skip
    return plan, result


def _record(plan: Plan, methods: dict[str, Plan], limit: int | None, context: int) -> dict[str, Any]:
    shape, sample, settings = plan.shape, plan.sample, plan.settings
    tokens = None if limit is None else largest_tokens(shape, sample, settings, limit=limit, context=context)
    return {
        "model": shape_record(shape),
        "settings": dataclasses.asdict(settings),
        "sample": dataclasses.asdict(sample),
        "row": dataclasses.asdict(plan.row),
        "phases": plan.phases,
        "peak": plan.peak,
        "peak_phase": plan.peak_phase,
        "host": plan.host,
        "methods": {
            name: {
                "peak": other.peak,
                "head": other.phases["head"]["head"],
                "tokens": other.row.tokens,
                "fits": None if limit is None else other.peak <= limit,
                "largest_samples": None
                if limit is None
                else largest_samples(shape, sample, settings, limit=limit, context=context, method=name),
            }
            for name, other in methods.items()
        },
        "gpu_memory": limit,
        "fits": None if limit is None else plan.peak <= limit,
        "largest_tokens": tokens,
        "changes": [
            dataclasses.asdict(change) for change in changes(shape, sample, settings, limit=limit, context=context)
        ],
    }


def _text(plan: Plan, result: dict[str, Any]) -> str:
    shape, sample, settings = plan.shape, plan.sample, plan.settings
    trained = "all weights" if settings.lora is None else f"LoRA rank {settings.lora}"
    lines = [
        f"{shape.name}: {shape.parameters / 1e9:.2f} billion parameters, {trained}, {settings.precision}, "
        f"{settings.optimizer}, {settings.engine} on {settings.gpus} GPU{'s' if settings.gpus > 1 else ''}"
        + (", checkpointing" if settings.checkpointing else "")
        + (f", {settings.accumulation} micro-batches a step" if settings.accumulation > 1 else "")
        + (f", offload {settings.offload}" if settings.offload != "none" else ""),
        f"{sample.samples} sample{'s' if sample.samples > 1 else ''} of K = {sample.objectives} in a row of "
        f"{plan.row.tokens} tokens ({plan.row.rows} rows of the head), sharing {sample.sharing}",
    ]
    if not shape.is_exact:
        lines.append(f"model type {shape.model_type!r} is planned with Llama's layers; its own may keep more or less")
    lines += ["", "GiB on each GPU, at the point of the phase where most is held:", _phases(plan), ""]
    if plan.host:
        lines += [f"host memory for each GPU: {gib(plan.host)} GiB", ""]
    limit = result["gpu_memory"]
    lines += ["the same samples by other methods, GiB:", _methods(result["methods"], limit), ""]
    if limit is not None:
        verdict = "fits" if result["fits"] else "does not fit"
        lines.append(f"{verdict}: {gib(plan.peak)} of {gib(limit)} GiB, in the phase {plan.peak_phase!r}")
        tokens = result["largest_tokens"]
        lines.append(f"largest token budget: {tokens}" if tokens else "not even one sample fits")
    if "smallest_cluster" in result:
        found = result["smallest_cluster"]
        lines.append(
            f"smallest cluster: --gpus {found['gpus']} --engine {found['engine']} ({gib(found['peak'])} GiB each"
            + (f", {gib(found['host'])} of host memory)" if found["host"] else ")")
            if found is not None
            else _why_no_cluster(settings)
        )
    rows = [[c["label"], gib(c["freed"]), gib(c["peak"]), _yes(limit, c["fits"])] for c in result["changes"][:8]]
    if rows:
        lines += ["", "single changes, the one that frees most first, GiB:"]
        lines.append(table(["change", "frees", "peak", "fits" if limit else ""], rows))
    return "\n".join(lines)


def _methods(methods: dict[str, dict[str, Any]], limit: int | None) -> str:
    header = ["method", "tokens", "head", "peak"] + (["fits", "most samples that fit"] if limit is not None else [])
    rows = []
    for name, method in methods.items():
        row = [name, str(method["tokens"]), gib(method["head"]), gib(method["peak"])]
        rows.append(row + ([_yes(limit, method["fits"]), str(method["largest_samples"])] if limit is not None else []))
    return table(header, rows)


def _why_no_cluster(settings: RunSettings) -> str:
    if settings.engine == "ddp":
        return "no cluster of such GPUs fits: ddp holds all states on each; give --engine fsdp2 or zero3"
    if settings.optimizer == "adamw8bit":
        return "one such GPU does not hold it, and adamw8bit is for single and ddp alone; give --optimizer adamw"
    return (
        "no cluster of such GPUs fits: what one rank keeps for its own row is too large; lower --tokens, or take a "
        "change below"
    )


def _yes(limit: int | None, fits: bool) -> str:
    return "" if limit is None else "yes" if fits else "no"


def _phases(plan: Plan) -> str:
    used = [name for name in COMPONENTS if any(part[name] if name in part else 0 for part in plan.phases.values())]
    rows = [
        [phase, *(gib(plan.phases[phase].get(name, 0)) for name in used), gib(plan.total(phase))] for phase in PHASES
    ]
    return table(["phase", *used, "total"], rows)
