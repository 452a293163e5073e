"""`amopo memory simulate`: the real model code on tensors without storage, two steps, against the plan."""

from __future__ import annotations

import dataclasses
import json
import logging
from typing import Any

from amopo.cli.errors import UsageError
from amopo.cli.memory_options import accumulate_option, gib, run_options, sample_of, settings_of, shape_from, table
from amopo.cli.models import need
from amopo.cli.options import Option, Settings
from amopo.memory.plan import make_plan
from amopo.memory.shapes import ModelShape, with_layers

DESCRIPTION = "Two training steps of the model's own code on tensors without storage, against the plan."


def options() -> list[Option]:
    need("transformers", "hf")
    return [
        *run_options(),
        accumulate_option(),
        Option("layers", int | None, "simulate so many layers (default: all)", default=None),
        Option("json", bool, "one JSON object, in bytes", default=False),
    ]


def run(settings: Settings) -> None:
    from amopo.memory.configs import config_of, samples_of
    from amopo.memory.simulate import simulate
    from amopo.memory.simulated_engines import ENGINES
    from amopo.packing import pack
    from amopo.trainer.forward import patch_forward

    shape, sample, asked = shape_from(settings), sample_of(settings), settings_of(settings)
    if settings.layers is not None:
        if settings.layers < 1:
            raise UsageError(f"--layers must be at least 1, got {settings.layers}")
        shape = with_layers(shape, settings.layers)
    _check(shape, asked, ENGINES)
    if asked.lora is not None:
        need("peft", "peft")
    plan = make_plan(shape, sample, asked, observed=True)
    logger = logging.getLogger("amopo.trainer.forward")
    level = logger.level
    logger.setLevel(logging.ERROR)  # it would say that weights without storage were not tried
    try:
        found = simulate(
            config_of(shape), pack(samples_of(sample), sharing=sample.sharing), patch=patch_forward,
            engine=asked.engine, gpus=asked.gpus, precision=asked.precision, checkpointing=asked.checkpointing,
            lora=asked.lora, accumulation=asked.accumulation, head_budget=asked.head_budget,
        )  # fmt: skip
    finally:
        logger.setLevel(level)
    phases = {
        phase: {"simulated": found.peaks[phase], "planned": plan.total(phase), "kinds": found.kinds[phase]}
        for phase in found.peaks
    }
    peak = {"simulated": found.peak, "planned": plan.peak}
    if settings.json:
        print(json.dumps({"settings": dataclasses.asdict(asked), "phases": phases, "peak": peak}, indent=1))
        return
    rows = [_row(name, part) for name, part in [*phases.items(), ("peak", peak)]]
    print(f"{shape.name}, {shape.layers} layers, {asked.engine} on {asked.gpus}, {plan.row.tokens} tokens; GiB a rank:")
    print(table(["phase", "simulated", "planned", "difference"], rows))


def _row(name: str, part: dict[str, Any]) -> list[str]:
    difference = part["planned"] / part["simulated"] - 1
    return [name, gib(part["simulated"]), gib(part["planned"]), f"{100 * difference:+.1f} %"]


def _check(shape: ModelShape, settings: Any, engines: tuple[str, ...]) -> None:
    if settings.engine not in engines:
        raise UsageError(f"--engine: {settings.engine} cannot be simulated; {', '.join(engines)} can")
    if settings.offload != "none":
        raise UsageError(f"--offload: {settings.offload} cannot be simulated; --offload none can")
    if settings.optimizer != "adamw":
        raise UsageError(
            f"--optimizer: {settings.optimizer} cannot be simulated, its kernels (bitsandbytes) run on a GPU alone; "
            "--optimizer adamw can"
        )
    if shape.attention_softcap is not None:
        raise UsageError(
            f"--model: attention with a softcap ({shape.name}) cannot be simulated, torch's varlen operator has none; "
            "give a config.json with attn_logit_softcapping null"
        )
    if not shape.is_exact:
        raise UsageError(f"--model: layers of type {shape.model_type!r} are not simulated; give one of the families")
