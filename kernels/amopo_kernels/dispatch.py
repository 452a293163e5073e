"""Calls of the element-wise operations, each sent to the implementation that `backend` chose for the tensors at hand.

The signatures are those of the eager implementations in `row_pass` and `segments`.
"""

from __future__ import annotations

import torch
from torch import Tensor

from amopo_kernels import backend
from amopo_kernels import row_pass as eager
from amopo_kernels.row_pass import RowState, Transform


def row_pass(
    logits: Tensor,
    targets: Tensor,
    bias: Tensor | None,
    transform: Transform,
    *,
    logp: Tensor,
    state: RowState,
    out: Tensor | None,
    half_range: bool,
    block_rows: int,
) -> None:
    module = backend.module_for("row_pass", logits, logp.dtype) or eager
    module.row_pass(
        logits, targets, bias, transform,
        logp=logp, state=state, out=out, half_range=half_range, block_rows=block_rows,
    )  # fmt: skip


def tile_pass(
    logits: Tensor,
    targets: Tensor,
    bias: Tensor | None,
    transform: Transform,
    *,
    state: RowState,
    out: Tensor,
    half_range: bool,
    block_rows: int,
) -> None:
    module = backend.module_for("tile_pass", logits, state.mass.dtype) or eager
    module.tile_pass(
        logits, targets, bias, transform, state=state, out=out, half_range=half_range, block_rows=block_rows
    )


def scale_rows(x: Tensor, scale: Tensor, out: Tensor) -> Tensor:
    """`out[r] = scale[r] * x[r]`, the product in the dtype of `scale`, rounded once to that of `out`."""
    module = backend.module_for("scale_rows", x, scale.dtype)
    if hasattr(module, "scale_rows"):
        return module.scale_rows(x, scale, 1.0, out)
    return torch.mul(x, scale[:, None], out=out)
