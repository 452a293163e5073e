"""What a result was measured on: device, processor, versions, command."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import re
import shlex
import sys
from datetime import date

import torch

_PACKAGES = (
    "torch", "triton", "liger-kernel", "cut-cross-entropy", "trl", "quack-kernels", "transformers", "pytest-benchmark",
)  # fmt: skip


def version_of(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def versions() -> dict[str, str]:
    """Installed versions of everything that takes part; what is absent is left out."""
    found = {name: version_of(name) for name in _PACKAGES}
    found["torch"] = torch.__version__
    if torch.version.cuda:
        found["cuda"] = torch.version.cuda
    found["python"] = platform.python_version()
    return {name: version for name, version in found.items() if version}


def _processor() -> tuple[str, list[str]]:
    name, flags = platform.processor() or platform.machine(), []
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as file:
            for line in file:
                key, _, value = line.partition(":")
                if key.strip() == "model name":
                    name = value.strip()
                elif key.strip() == "flags":
                    flags = value.split()
                    break
    except OSError:
        pass
    return name, [flag for flag in ("avx2", "avx512f", "avx512_bf16", "amx_bf16") if flag in flags]


def describe(device: torch.device) -> dict[str, object]:
    """The machine as a table of a few words."""
    processor, units = _processor()
    info: dict[str, object] = {
        "processor": processor,
        "vector_units": units,
        "threads": torch.get_num_threads(),
        "system": f"{platform.system()} {platform.machine()}",
    }
    if device.type == "cuda":
        properties = torch.cuda.get_device_properties(device)
        info |= {
            "gpu": properties.name,
            "gpu_memory_bytes": properties.total_memory,
            "multiprocessors": properties.multi_processor_count,
            "capability": f"{properties.major}.{properties.minor}",
        }
    return {"device": device_name(device), **info}


def device_name(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_properties(device).name
    processor, units = _processor()
    best = units[-1].replace("_", "-") if units else platform.machine()
    return f"{processor} ({torch.get_num_threads()} threads, {best})"


def slug(name: str) -> str:
    """`NVIDIA H200` -> `nvidia-h200`."""
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")


def command() -> str:
    """The command line that reproduces this run: interpreter and paths by their plain names."""
    words = [os.path.basename(word) if os.path.isabs(word) else word for word in sys.argv]
    if words and words[0] in ("pytest", "__main__.py", "pytest.py", "py.test"):
        words = ["python", "-m", "pytest", *words[1:]]
    kept, skip = [], False
    for word in words:
        if not skip and not word.startswith("--bench-results"):
            kept.append(word)
        skip = word == "--bench-results"
    return shlex.join(kept)


def today() -> str:
    return date.today().isoformat()
