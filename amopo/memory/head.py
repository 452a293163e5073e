"""What the head takes: `plan_workspace`, the formula behind `amopo.workspace_bytes`, and the rows it reads."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from amopo_kernels.products import choose_products
from amopo_kernels.workspace import plan_workspace, row_stride

_DTYPES = {2: torch.bfloat16, 4: torch.float32}


@dataclass(frozen=True)
class HeadMemory:
    """Bytes beyond hidden states and weight: in the forward, kept until the backward, in the backward without dW."""

    forward: int
    kept: int
    backward: int


def head_memory(
    rows: int,
    hidden: int,
    vocab: int,
    *,
    compute: int,
    stored: int,
    frozen: bool,
    softcap: bool = False,
    budget: int | None = None,
    device: str = "cuda",
) -> HeadMemory:
    """`compute`, `stored`: bytes per number of the products and of the weight; rows counts the head's rows."""
    dtype = _DTYPES[compute]
    try:
        plan = plan_workspace(
            (rows, hidden, vocab),
            choose_products(dtype, torch.device(device), None),
            budget=budget,
            need_hidden_grad=True,
            need_weight_grad=not frozen,
            softcap=softcap,
            cast_weight=stored != compute,
            device_type=device,
        )
    except ValueError as error:
        given = "its default" if budget is None else budget
        raise ValueError(f"head_budget ({given}) is too small: {error}; give more, or fewer tokens") from None
    # hidden rows are an input of the call, and kept where dW is wanted
    inputs = rows * hidden * compute
    kept = plan.kept_rows * row_stride(vocab) * compute + rows * hidden * compute
    return HeadMemory(
        forward=plan.forward_bytes + inputs,
        kept=kept + (0 if frozen else inputs),
        backward=plan.backward_bytes + (0 if frozen else inputs),
    )
