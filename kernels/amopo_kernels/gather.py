"""Rows gathered by index; the backward adds the gradients of rows that were read more than once, in fp32.

    gather_rows(x[R, ...], GatherIndex) -> [N, ...]

Contract: `out[n] = x[index[n]]`; the gradient of row r is the sum of the gradients of all n that read it, added in fp32
(fp64 for fp64), rounded once, always in the same order. Eight bf16 copies added in bf16 lose 0.41 % where one rounding
loses 0.24 %, and `index_add` on CUDA adds in whatever order its atomics come. A `GatherIndex` is made on the host once
per batch. Triton on CUDA, plain PyTorch elsewhere. Memory: the output; in the eager backward an fp32 [R, ...].
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from amopo_kernels import backend


@dataclass(frozen=True)
class GatherIndex:
    """Which rows are read, and, sorted by the row, who reads them.

    index: int64 [N], rows read. order: int64 [N], positions of `index` sorted by the row they read. offsets: int64
    [R + 1]: row r is read by `order[offsets[r] : offsets[r + 1]]`.
    """

    index: Tensor
    order: Tensor
    offsets: Tensor

    @classmethod
    def of(cls, index: Tensor, num_rows: int) -> GatherIndex:
        """From int64 [N] on the host, rows in `range(num_rows)`."""
        if index.dim() != 1 or index.dtype != torch.int64 or index.device.type != "cpu":
            raise ValueError(f"GatherIndex.of takes int64 [N] on the CPU, got {index.dtype} {tuple(index.shape)}")
        if index.numel() and not 0 <= int(index.min()) <= int(index.max()) < num_rows:
            raise ValueError(
                f"GatherIndex.of: rows {int(index.min())} to {int(index.max())} are asked for, but there are {num_rows}"
            )
        counts = torch.bincount(index, minlength=num_rows)
        offsets = torch.cat([counts.new_zeros(1), counts.cumsum(0)])
        return cls(index, torch.argsort(index, stable=True), offsets)

    @property
    def num_rows(self) -> int:
        """R, rows of the source."""
        return self.offsets.shape[0] - 1


def gather_rows(x: Tensor, rows: GatherIndex) -> Tensor:
    """`x[rows.index]` along the first dimension, `[R, ...] -> [N, ...]`; its gradient is the module's."""
    if x.shape[0] != rows.num_rows:
        raise ValueError(f"gather_rows: the index was made for {rows.num_rows} rows, x has {x.shape[0]}")
    return _gather_op(x, rows.index, rows.order, rows.offsets)


def _flat(x: Tensor) -> Tensor:
    """`[R, everything else]`, also where R is 0; a gradient can be one number in many places."""
    return x.reshape(x.shape[0], math.prod(x.shape[1:])).contiguous()


@torch.library.custom_op("amopo::gather_rows", mutates_args=())
def _gather_op(x: Tensor, index: Tensor, order: Tensor, offsets: Tensor) -> Tensor:
    module = backend.module_for("gather_rows", x)
    if hasattr(module, "gather_rows"):
        flat = _flat(x)
        return module.gather_rows(flat, index).view(index.shape[0], *x.shape[1:])
    return x.index_select(0, index)


@_gather_op.register_fake
def _(x, index, order, offsets):
    return x.new_empty((index.shape[0], *x.shape[1:]))


@torch.library.custom_op("amopo::scatter_rows", mutates_args=())
def _scatter_op(grad: Tensor, index: Tensor, order: Tensor, offsets: Tensor) -> Tensor:
    rows = offsets.shape[0] - 1
    module = backend.module_for("gather_rows", grad)
    if hasattr(module, "scatter_rows"):
        flat = _flat(grad)
        return module.scatter_rows(flat, order, offsets).view(rows, *grad.shape[1:])
    wide = torch.promote_types(grad.dtype, torch.float32)
    if grad.device.type == "cpu":  # no atomics here: the same order every time
        total = torch.zeros((rows, *grad.shape[1:]), dtype=wide, device=grad.device)
        return total.index_add_(0, index, grad.to(wide)).to(grad.dtype)
    flat = _flat(grad).index_select(0, order).to(wide)
    total = torch.segment_reduce(flat, "sum", offsets=offsets, axis=0, initial=0)
    return total.to(grad.dtype).view(rows, *grad.shape[1:])


@_scatter_op.register_fake
def _(grad, index, order, offsets):
    return grad.new_empty((offsets.shape[0] - 1, *grad.shape[1:]))


def _setup_context(ctx, inputs, output) -> None:
    ctx.save_for_backward(*inputs[1:])


def _backward(ctx, grad):
    return _scatter_op(grad, *ctx.saved_tensors), None, None, None


_gather_op.register_autograd(_backward, setup_context=_setup_context)
