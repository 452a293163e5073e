"""`amopo env`: what would run here, in a form to paste into a report.

Versions of the packages that matter, processor and devices, the implementation of each operation with its reason, the
precision of the head's matrix products. `--json` prints the same as one JSON object.
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
        "accelerators": accelerators or ["none"],
    }


def collect() -> dict[str, Any]:
    from amopo_kernels.backend import describe, describe_products

    return {
        "versions": versions(),
        "machine": machine(),
        "operations": describe(),
        "head products": describe_products(),
    }


def as_text(found: dict[str, Any]) -> str:
    lines = ["versions"]
    lines += [f"  {name:<14}{version}" for name, version in found["versions"].items()]
    lines += ["", "machine"]
    for name, value in found["machine"].items():
        lines.append(f"  {name:<14}{'; '.join(value) if isinstance(value, list) else value}")
    for title in ("operations", "head products"):
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
