"""Which implementation of each operation runs, and why: one place, printable.

| backend | where | what it needs |
|---|---|---|
| triton | CUDA; on a CPU only in Triton's interpreter (`TRITON_INTERPRET=1`) | the triton package |
| cpp | CPU | the compiled extension `amopo_kernels._C` |
| eager | anywhere | nothing |

By default the first of these that is there; `AMOPO_BACKEND=triton|cpp|eager` asks for one, and raises where it cannot
run instead of falling back in silence. fp64 always runs eager: it exists for tests.
"""

from __future__ import annotations

import functools
import importlib
import importlib.util
import os
from types import ModuleType
from typing import TypedDict

import torch

from amopo_kernels.products import choose_products, cpu_has_native

OPERATIONS = ("row_pass", "tile_pass", "scale_rows", "sequence_stats", "mobt", "gather_rows")
BACKENDS = ("triton", "cpp", "eager")
_CPP_OPERATIONS = ("row_pass", "tile_pass", "sequence_stats", "mobt")
_MODULES = {"triton": "amopo_kernels.triton.launch", "cpp": "amopo_kernels.cpp"}


class OperationInfo(TypedDict):
    """One row of `amopo env`."""

    operation: str
    backend: str
    reason: str


def triton_available(device_type: str) -> tuple[bool, str]:
    """Whether Triton kernels can run on tensors of this device type, and why (not)."""
    if importlib.util.find_spec("triton") is None:
        return False, "triton is not installed"
    if device_type == "cuda":
        return True, "CUDA and triton are there"
    if os.environ.get("TRITON_INTERPRET") == "1":
        return True, "Triton's interpreter (TRITON_INTERPRET=1)"
    return False, f"triton does not run on {device_type} outside its interpreter"


def cpp_available(device_type: str) -> tuple[bool, str]:
    """Whether the compiled CPU operations are there."""
    if device_type != "cpu":
        return False, f"the C++ operations are for the CPU, not for {device_type}"
    if importlib.util.find_spec("amopo_kernels.cpp") is None:
        return False, "the C++ operations were not built"
    return importlib.import_module("amopo_kernels.cpp").available()


@functools.cache
def _choose(operation: str, device_type: str, asked: str, interpreted: str) -> tuple[str, str]:
    def cpp(device_type: str) -> tuple[bool, str]:
        there, reason = cpp_available(device_type)
        return (False, "plain PyTorch serves it") if there and operation not in _CPP_OPERATIONS else (there, reason)

    checks = {"triton": triton_available, "cpp": cpp, "eager": lambda _: (True, "plain PyTorch runs anywhere")}
    if asked:
        if asked not in BACKENDS:
            raise ValueError(f"AMOPO_BACKEND={asked!r} is not known; known: {', '.join(BACKENDS)}")
        there, reason = checks[asked](device_type)
        if not there and asked == "cpp" and cpp_available(device_type)[0]:
            return "eager", "no C++ form of it"
        if not there:
            raise ValueError(f"AMOPO_BACKEND={asked!r} cannot run {operation}: {reason}")
        return asked, "set by AMOPO_BACKEND"
    reasons = []
    for name in BACKENDS:
        there, reason = checks[name](device_type)
        if there and not (name == "triton" and device_type != "cuda"):  # the interpreter only where it is asked for
            return name, "; ".join([reason, *reasons])
        reasons.append(f"not {name}: {reason}")
    raise AssertionError("eager is always there")


def choose(operation: str, device_type: str) -> tuple[str, str]:
    """(backend, reason) for an operation on tensors of a device type."""
    return _choose(operation, device_type, os.environ.get("AMOPO_BACKEND", ""), os.environ.get("TRITON_INTERPRET", ""))


@functools.cache
def load(name: str) -> ModuleType | None:
    """The module of a backend's functions; None for eager, whose functions stand in their own modules."""
    return importlib.import_module(_MODULES[name]) if name in _MODULES else None


def module_for(operation: str, tensor: torch.Tensor, accumulate: torch.dtype | None = None) -> ModuleType | None:
    """The module that runs `operation` on `tensor`; None for the eager form, which always serves fp64."""
    if torch.float64 in (tensor.dtype, accumulate):
        return None
    return load(choose(operation, tensor.device.type)[0])


def describe() -> list[OperationInfo]:
    """Per operation: the implementation that runs on this machine's default device, with the reason."""
    device_type = "cuda" if torch.cuda.is_available() else "cpu"
    rows = []
    for operation in OPERATIONS:
        name, reason = choose(operation, device_type)
        rows.append(OperationInfo(operation=operation, backend=name, reason=reason))
    return rows


def describe_products() -> list[dict[str, str]]:
    """Per input dtype on this machine's default device: in which precision the head's matrix products run."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    rows = []
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        products = choose_products(dtype, device, None)
        if device.type == "cpu" and products.policy == "upcast":
            why = "no hardware units for this dtype: fp32 copies of tiles are faster"
        elif device.type == "cpu" and dtype != torch.float32:
            why = f"hardware units: {cpu_has_native(dtype)}"
        else:
            why = "default"
        rows.append(
            {
                "device": device.type,
                "inputs": str(dtype).removeprefix("torch."),
                "policy": products.policy,
                "logits": str(products.logits).removeprefix("torch."),
                "reason": why,
            }
        )
    return rows
