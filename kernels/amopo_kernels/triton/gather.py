"""Triton gather of rows whose backward adds duplicates in fp32, one program per (source row, block of columns).

`gather_rows(x[R, H], index[N]) -> [N, H]`; the backward needs, per source row, the positions that read it. The host
gives them as a segment list (positions sorted by source, offsets per source), so that each sum runs in one fixed order:
no atomics, bitwise equal from run to run, and eight bf16 copies are added in fp32 and rounded once.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def gather_rows_kernel(x_ptr, index_ptr, out_ptr, x_stride, out_stride, columns, BLOCK: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    column = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = column < columns
    source = tl.load(index_ptr + row).to(tl.int64)
    tl.store(out_ptr + row * out_stride + column, tl.load(x_ptr + source * x_stride + column, mask=inside), mask=inside)


@triton.jit
def scatter_rows_kernel(
    grad_ptr, positions_ptr, offsets_ptr, out_ptr, grad_stride, out_stride, columns, BLOCK: tl.constexpr
):  # fmt: skip
    """`out[r] = sum of grad[positions[offsets[r] : offsets[r + 1]]]`, in fp32."""
    row = tl.program_id(0).to(tl.int64)
    column = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = column < columns
    start = tl.load(offsets_ptr + row).to(tl.int32)
    stop = tl.load(offsets_ptr + row + 1).to(tl.int32)
    total = tl.zeros([BLOCK], tl.float32)
    for i in range(start, stop):
        position = tl.load(positions_ptr + i).to(tl.int64)
        total += tl.load(grad_ptr + position * grad_stride + column, mask=inside, other=0.0).to(tl.float32)
    tl.store(out_ptr + row * out_stride + column, total.to(out_ptr.dtype.element_ty), mask=inside)


@triton.jit
def scale_rows_kernel(
    x_ptr, scale_ptr, out_ptr, x_stride, out_stride, columns, factor, BLOCK: tl.constexpr
):  # fmt: skip
    """`out[r] = factor * scale[r] * x[r]`, product in fp32, rounded once."""
    row = tl.program_id(0).to(tl.int64)
    column = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = column < columns
    value = tl.load(x_ptr + row * x_stride + column, mask=inside, other=0.0).to(tl.float32)
    value = value * (factor * tl.load(scale_ptr + row))
    tl.store(out_ptr + row * out_stride + column, value.to(out_ptr.dtype.element_ty), mask=inside)
