"""`amopo env`: what would run here, in a form to paste into a report.

Versions of the packages that matter, processor and devices, what several processes would talk through, the
implementation of each operation with its reason, the precision of the head's matrix products, the attention over packed
rows on each device, and what the environment asks for. `--json` prints the same as one JSON object.
"""

from __future__ import annotations

import importlib.metadata
import json
import os
import platform
from collections.abc import Sequence
from typing import Any

from amopo import __version__
from amopo.cli.options import Option, Settings

DESCRIPTION = "Versions, devices, and which implementation of each operation runs here, with the reason."

PACKAGES = (
    "torch",
    "triton",
    "transformers",
    "accelerate",
    "tokenizers",
    "peft",
    "trl",
    "deepspeed",
    "flash-attn",
    "datasets",
    "pyarrow",
    "matplotlib",
    "rich",
)


# What changes which implementation runs, where, and on how much.
VARIABLES = (
    "AMOPO_BACKEND",
    "AMOPO_ATTENTION",
    "AMOPO_DEBUG",
    "TRITON_INTERPRET",
    "CUDA_VISIBLE_DEVICES",
    "OMP_NUM_THREADS",
    "WORLD_SIZE",
    "RANK",
    "HF_HUB_OFFLINE",
)


def options() -> list[Option]:
    return [Option("json", bool, "print one JSON object instead of text", default=False)]


def run(settings: Settings) -> None:
    found = collect()
    if settings.json:
        print(json.dumps(found, indent=2))
    else:
        print(as_text(found), end="")


def versions() -> dict[str, str]:
    """Installed versions by package, "not installed" where there is none."""
    found = {"amopo": __version__, "python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            found[package] = "not installed"
    return found


def machine() -> dict[str, Any]:
    """Processor, threads and accelerators."""
    import torch

    accelerators = []
    for index in range(torch.cuda.device_count() if torch.cuda.is_available() else 0):
        properties = torch.cuda.get_device_properties(index)
        accelerators.append(
            f"cuda:{index} {properties.name}, {properties.total_memory / 2**30:.0f} GiB, "
            f"compute capability {properties.major}.{properties.minor}"
        )
    return {
        "system": f"{platform.system()} {platform.machine()}",
        "processors": os.cpu_count(),
        "torch threads": torch.get_num_threads(),
        "vector units": torch.backends.cpu.get_cpu_capability(),
        "CUDA of torch": torch.version.cuda or "none",
        "accelerators": accelerators or ["none"],
    }


def distributed() -> dict[str, str]:
    """Per backend of torch.distributed whether it is there; the deepspeed extra."""
    import torch

    if not torch.distributed.is_available():
        return {"torch.distributed": "not in this torch"}
    found = {"gloo": "there" if torch.distributed.is_gloo_available() else "not in this torch"}
    found["nccl"] = "not in this torch"
    if torch.distributed.is_nccl_available():
        found["nccl"] = "there" if torch.cuda.is_available() else "there, but no GPU"
        if torch.cuda.is_available():
            found["nccl"] = ".".join(map(str, torch.cuda.nccl.version()))
    found["processes"] = f"amopo train --nproc {max(1, torch.cuda.device_count())}" + (
        " (one per GPU)" if torch.cuda.is_available() else " (--nproc N runs N on the CPU)"
    )
    return found


def collect() -> dict[str, Any]:
    import torch

    from amopo.packing.attention_backends import describe as describe_attention
    from amopo_kernels.backend import describe, describe_products

    gpus = [f"cuda:{index}" for index in range(torch.cuda.device_count() if torch.cuda.is_available() else 0)]
    return {
        "versions": versions(),
        "machine": machine(),
        "distributed": distributed(),
        "operations": describe(),
        "head products": describe_products(),
        "attention": describe_attention([*gpus, "cpu"]),
        "environment": {name: os.environ[name] for name in VARIABLES if name in os.environ},
    }


def as_text(found: dict[str, Any]) -> str:
    lines = ["versions"]
    lines += [f"  {name:<14}{version}" for name, version in found["versions"].items()]
    for title in ("machine", "distributed", "environment"):
        lines += ["", title]
        width = max(14, *(len(name) + 2 for name in found[title])) if found[title] else 14
        for name, value in (found[title] or {"none": ""}).items():
            lines.append(f"  {name:<{width}}{'; '.join(value) if isinstance(value, list) else value}".rstrip())
    for title in ("operations", "head products", "attention"):
        lines += ["", title, *_columns(found[title])]
    return "\n".join(lines) + "\n"


def _columns(rows: Sequence[dict[str, str]]) -> list[str]:
    """Rows of equal keys as aligned text under their keys."""
    if not rows:
        return ["  none"]
    keys = list(rows[0])
    widths = [max(len(key), *(len(str(row[key])) for row in rows)) for key in keys]
    lines = []
    for row in [dict(zip(keys, keys, strict=True)), *rows]:
        cells = (f"{row[key]!s:<{width}}" for key, width in zip(keys, widths, strict=True))
        lines.append(("  " + "  ".join(cells)).rstrip())
    return lines
