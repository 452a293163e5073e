"""Which implementation of each operation runs, and why: one place, printable.

Only the eager PyTorch implementation exists in this version. `AMOPO_BACKEND` names the one to use; a backend that is
not there raises here, at import of the operation, rather than falling back in silence.
"""

from __future__ import annotations

import os
from typing import TypedDict

import torch

from amopo_kernels.products import choose_products, cpu_has_native

OPERATIONS = ("linear_logprobs", "sequence_stats", "multi_objective_bradley_terry", "gaussian_noise")
KNOWN = ("eager",)


class OperationInfo(TypedDict):
    """One row of `amopo env`."""

    operation: str
    backend: str
    reason: str


def selected() -> str:
    """The backend in use; raises ValueError for an unknown `AMOPO_BACKEND`."""
    name = os.environ.get("AMOPO_BACKEND", "eager")
    if name not in KNOWN:
        raise ValueError(f"AMOPO_BACKEND={name!r} is not available; known: {', '.join(KNOWN)}")
    return name


def describe() -> list[OperationInfo]:
    """Per operation: the implementation that runs here, with the reason."""
    reason = "set by AMOPO_BACKEND" if "AMOPO_BACKEND" in os.environ else "the only one in this version"
    return [OperationInfo(operation=name, backend=selected(), reason=reason) for name in OPERATIONS]


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
