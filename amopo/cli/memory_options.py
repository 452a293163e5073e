"""The options that describe a run to `amopo memory`, and what they mean.

`settings_of(settings)` -> RunSettings; `sample_of(settings)` -> SampleShape filled to the token budget; `size("80GB")`
-> bytes (GB is 10^9 bytes as on data sheets, GiB is 2^30).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from amopo.cli.errors import UsageError
from amopo.cli.options import Option, Settings
from amopo.memory.configs import counted_parameters
from amopo.memory.known_shapes import BUILT_IN, read_config, shape_of
from amopo.memory.settings import ENGINES, OFFLOADS, OPTIMIZERS, RunSettings, SampleShape
from amopo.memory.shapes import ModelShape
from amopo.memory.workload import fill
from amopo.packing.trie import SHARING

GIB = 1 << 30
COUNT_TOLERANCE = 0.02  # norms of other widths and biases stay below that
_UNITS = {
    "": 1,
    "B": 1,
    "KB": 10**3,
    "MB": 10**6,
    "G": 10**9,
    "GB": 10**9,
    "TB": 10**12,
    "KIB": 1 << 10,
    "MIB": 1 << 20,
    "GIB": GIB,
}


def run_options() -> list[Option]:
    return [
        Option("model", str, "built-in name (Qwen2.5-32B, ...), folder or config.json", metavar="M", required=True),
        Option("gpus", int, "GPUs in all", default=1),
        Option("gpus_per_node", int, "GPUs of one node", default=8),
        Option("engine", str | None, f"{', '.join(ENGINES)} (default: single for one GPU, else fsdp2)", default=None),
        Option("objectives", int, "K, objectives of a sample", default=4),
        Option("tokens", int, "token budget of a row, filled with whole samples", default=8192),
        Option("sharing", str, f"what sequences share: {', '.join(SHARING)}", default="pair"),
        Option("prompt", int, "tokens of a prompt", default=256),
        Option("template", int, "tokens of an objective's template", default=32),
        Option("chosen", int, "tokens of a chosen response", default=256),
        Option("rejected", int, "tokens of a rejected response", default=256),
        Option("lora", int | None, "rank of adapters on the linear layers; the rest is frozen", default=None),
        Option("checkpointing", bool, "keep the layers' inputs alone, compute the layers again", default=False),
        Option("precision", str, "mixed (fp32 weights, bf16 products), bf16 or fp32", default="mixed"),
        Option("optimizer", str, f"{', '.join(OPTIMIZERS)}", default="adamw"),
        Option("offload", str, f"to host memory: {', '.join(OFFLOADS)}", default="none"),
        Option("head_budget", int | None, "bytes for what grows with the vocabulary", default=None),
    ]


def accumulate_option() -> Option:
    return Option("accumulate", int, "micro-batches of a step (gradient_accumulation_steps)", default=1)


def shape_from(settings: Settings) -> ModelShape:
    """The shape of `--model`; of a family whose code was not read, its parameters are counted by transformers.

    Raises:
        UsageError: there is no such model, it cannot be planned, or its layers are not Llama's.
    """
    try:
        shape = shape_of(settings.model)
        found = None if shape.is_exact else read_config(settings.model)
    except ValueError as error:
        raise UsageError(f"--model: {error}") from None
    counted = None if found is None else counted_parameters(found[0])
    if counted is not None and abs(shape.parameters / counted - 1) > COUNT_TOLERANCE:
        raise UsageError(
            f"--model: model {shape.name}: its type {shape.model_type!r} has {counted / 1e9:.2f} billion parameters, "
            f"and Llama's layers of its sizes {shape.parameters / 1e9:.2f}; its layers are others and are not planned"
        )
    return shape


def settings_of(settings: Settings, **fixed: Any) -> RunSettings:
    engine = settings.engine or ("single" if settings.gpus == 1 else "fsdp2")
    names = ("gpus", "gpus_per_node", "precision", "optimizer", "offload", "checkpointing", "lora", "head_budget")
    given = {name: settings.values[name] for name in names}
    if "accumulate" in settings.values:  # not every command takes several micro-batches
        given["accumulation"] = settings.values["accumulate"]
    return RunSettings(**{"engine": engine, **given, **fixed})


def sample_of(settings: Settings) -> SampleShape:
    names = ("objectives", "prompt", "template", "chosen", "rejected", "sharing")
    return fill(SampleShape(**{name: settings.values[name] for name in names}), settings.tokens)


def size(text: str, flag: str, *, least: int = 1) -> int:
    """Bytes of "80GB", "80 GiB" or a number of bytes.

    Raises:
        UsageError: not a size, or below `least` bytes.
    """
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([A-Za-z]*)\s*", str(text))
    if match is None or match[2].upper() not in _UNITS:
        raise UsageError(f"{flag}: {text!r} is not a size; give a positive number with a unit, as in 80GB or 80GiB")
    found = int(float(match[1]) * _UNITS[match[2].upper()])
    if found < least:
        raise UsageError(f"{flag}: {text!r} is {found} bytes; give a positive number with a unit, as in 80GB or 80GiB")
    return found


def gpu_memory_of(settings: Settings) -> int | None:
    """Bytes of `--gpu-memory`, None where it is not given; less than a MiB is a unit forgotten."""
    return None if settings.gpu_memory is None else size(settings.gpu_memory, "--gpu-memory", least=1 << 20)


def gib(count: int) -> str:
    return f"{count / GIB:.2f}"


def table(header: list[str], rows: list[list[str]]) -> str:
    """Columns of text; the first to the left, the others to the right."""
    widths = [max(len(row[i]) for row in [header, *rows]) for i in range(len(header))]
    lines = []
    for row in [header, *rows]:
        cells = [cell.ljust(width) if i == 0 else cell.rjust(width) for i, (cell, width) in enumerate(zip(row, widths))]
        lines.append("  ".join(cells).rstrip())
    return "\n".join(lines)


def shape_record(shape: ModelShape) -> Mapping[str, Any]:
    return {"name": shape.name, "parameters": shape.parameters, "built_in": shape.name in BUILT_IN}
