"""The most memory that this process has held on its device so far.

`peak_memory_gib(device)` is, in GiB: on CUDA what torch's allocator held at its peak (`max_memory_allocated`, since the
start or the last reset); on a CPU the peak resident size of the whole process, libraries and data included. None where
the system does not tell. Reading it waits for nothing.
"""

from __future__ import annotations

import sys

import torch


def peak_memory_gib(device: torch.device) -> float | None:
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**30
    try:
        import resource
    except ImportError:  # not on Windows
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    # bytes on macOS, KiB elsewhere
    return peak / (2**30 if sys.platform == "darwin" else 2**20)
