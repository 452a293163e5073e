"""Triton row pass: logits to log-probs, target-referenced exponentials and their mass, one program per row.

The contract is that of `amopo_kernels.row_pass` (same formulas, same outputs); this file adds how rows are read:

| logits -> G | reads of the row | why |
|---|---|---|
| fp32 -> other tensor, or no G | 1 (the rare clamped row is redone) | r = z_y is known before the row is read |
| in place | 2 | an overflowed row that was written over would be lost: the maximum comes first |
| -> fp16, in place or not | 2 (the rare clamped row: 3) | stored as 2^12 * softmax: S comes before the first store |

The fp16 form sums with r = z_y and finds the maximum on the way, also in place: until S is known nothing is written.
Full blocks are read and written without a mask, whatever the vocabulary: a mask that is not a multiple of the vector
width would turn every access into single elements. Only the tail block has one. The target's column is written as 0 by
the sweep and gets its value at the end, behind a barrier.
Offsets are int64: rows * V passes 2^31 at 14k rows of a 152k vocabulary.
"""

from __future__ import annotations

import triton
import triton.language as tl

from amopo_kernels.triton.elementary import log1p, tanh

CLAMP = tl.constexpr(40.0)
FP16_SCALE = tl.constexpr(4096.0)


@triton.jit
def _transform(z, bias, scale, cap, HAS_BIAS: tl.constexpr, HAS_SCALE: tl.constexpr, HAS_CAP: tl.constexpr):
    if HAS_BIAS:
        z = z + bias
    if HAS_SCALE:
        z = z * scale
    if HAS_CAP:
        z = cap * tanh(z / cap)
    return z


@triton.jit
def _load(
    logits_ptr, bias_ptr, column, vocab, scale, cap,
    HAS_BIAS: tl.constexpr, HAS_SCALE: tl.constexpr, HAS_CAP: tl.constexpr, TAIL: tl.constexpr,
):  # fmt: skip
    """A block of transformed logits; beyond the vocabulary (only a tail has that) -inf."""
    if TAIL:
        inside = column < vocab
        z = tl.load(logits_ptr + column, mask=inside, other=0.0).to(tl.float32)
    else:
        z = tl.load(logits_ptr + column).to(tl.float32)
    bias = 0.0
    if HAS_BIAS:
        if TAIL:
            bias = tl.load(bias_ptr + column, mask=inside, other=0.0).to(tl.float32)
        else:
            bias = tl.load(bias_ptr + column).to(tl.float32)
    z = _transform(z, bias, scale, cap, HAS_BIAS, HAS_SCALE, HAS_CAP)
    if TAIL:
        z = tl.where(inside, z, float("-inf"))
    return z


@triton.jit
def _exponentials(
    z, out_ptr, column, vocab, target, reference, factor, cap, store,
    HAS_CAP: tl.constexpr, STORE: tl.constexpr, HALF_RANGE: tl.constexpr, TAIL: tl.constexpr,
):  # fmt: skip
    """exp(z - r) without the target's entry; written to the row of G when `store` says so."""
    e = tl.where(column == target, 0.0, tl.exp(z - reference))
    if STORE:
        g = e
        if HAS_CAP:
            # z = -inf beyond the tail: e is 0 there, and 0 * inf must not become NaN in what is summed
            g = g * (1.0 - (z / cap) * (z / cap))
        if HALF_RANGE:
            g = g * factor
        g = g.to(out_ptr.dtype.element_ty)
        if HALF_RANGE:
            if store:
                if TAIL:
                    tl.store(out_ptr + column, g, mask=column < vocab)
                else:
                    tl.store(out_ptr + column, g)
        else:
            if TAIL:
                tl.store(out_ptr + column, g, mask=column < vocab)
            else:
                tl.store(out_ptr + column, g)
    return e


@triton.jit
def row_pass_kernel(
    logits_ptr,
    out_ptr,
    targets_ptr,
    bias_ptr,
    logp_ptr,
    reference_ptr,
    mass_ptr,
    factor_ptr,
    logits_stride,
    out_stride,
    vocab,
    scale,
    cap,
    HAS_BIAS: tl.constexpr,
    HAS_SCALE: tl.constexpr,
    HAS_CAP: tl.constexpr,
    STORE: tl.constexpr,
    MAXIMUM_FIRST: tl.constexpr,
    HALF_RANGE: tl.constexpr,
    BLOCK: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    logits_ptr += row * logits_stride
    out_ptr += row * out_stride
    # Never out of bounds on a bad label: the host asserts it, the kernel stays inside the row.
    target = tl.minimum(tl.maximum(tl.load(targets_ptr + row).to(tl.int32), 0), vocab - 1)
    columns = tl.arange(0, BLOCK)
    full = vocab // BLOCK * BLOCK

    z_target = tl.load(logits_ptr + target).to(tl.float32)
    bias_target = 0.0
    if HAS_BIAS:
        bias_target = tl.load(bias_ptr + target).to(tl.float32)
    z_target = _transform(z_target, bias_target, scale, cap, HAS_BIAS, HAS_SCALE, HAS_CAP)

    reference = z_target
    if MAXIMUM_FIRST:
        maxima = tl.full([BLOCK], float("-inf"), tl.float32)
        for start in range(0, full, BLOCK):
            z = _load(
                logits_ptr, bias_ptr, start + columns, vocab, scale, cap, HAS_BIAS, HAS_SCALE, HAS_CAP, TAIL=False
            )
            maxima = tl.maximum(maxima, z)
        if full < vocab:
            z = _load(logits_ptr, bias_ptr, full + columns, vocab, scale, cap, HAS_BIAS, HAS_SCALE, HAS_CAP, TAIL=True)
            maxima = tl.maximum(maxima, z)
        row_max = tl.max(maxima, 0)
        reference = tl.where(row_max - z_target > CLAMP, row_max - CLAMP, z_target)

    # Every form but HALF_RANGE stores while it sums. HALF_RANGE stores once S is known, in its last sweep. Where the
    # maximum was not known before, the rare clamped row is summed again.
    mass = 0.0
    sweep = 0
    sweeps = 1
    if HALF_RANGE:
        sweeps = 2
    while sweep < sweeps:
        last = sweep + 1 == sweeps
        masses = tl.zeros([BLOCK], tl.float32)
        maxima = tl.full([BLOCK], float("-inf"), tl.float32)
        factor = 1.0
        if HALF_RANGE:
            factor = FP16_SCALE / (tl.exp(z_target - reference) + mass)
        for start in range(0, full, BLOCK):
            column = start + columns
            z = _load(logits_ptr, bias_ptr, column, vocab, scale, cap, HAS_BIAS, HAS_SCALE, HAS_CAP, TAIL=False)
            maxima = tl.maximum(maxima, z)
            masses += _exponentials(
                z, out_ptr, column, vocab, target, reference, factor, cap, last,
                HAS_CAP, STORE, HALF_RANGE, TAIL=False,
            )  # fmt: skip
        if full < vocab:
            column = full + columns
            z = _load(logits_ptr, bias_ptr, column, vocab, scale, cap, HAS_BIAS, HAS_SCALE, HAS_CAP, TAIL=True)
            maxima = tl.maximum(maxima, z)
            masses += _exponentials(
                z, out_ptr, column, vocab, target, reference, factor, cap, last,
                HAS_CAP, STORE, HALF_RANGE, TAIL=True,
            )  # fmt: skip
        mass = tl.sum(masses, 0)
        if not MAXIMUM_FIRST:
            row_max = tl.max(maxima, 0)
            if (sweep == 0) & (row_max - z_target > CLAMP):
                reference = row_max - CLAMP
                sweeps += 1
        sweep += 1

    e_target = tl.exp(z_target - reference)
    total = e_target + mass
    logp = tl.where(reference != z_target, (z_target - reference) - tl.log(total), -log1p(mass) * e_target)
    tl.store(logp_ptr + row, logp)
    tl.store(reference_ptr + row, reference)
    tl.store(mass_ptr + row, mass)
    tl.store(factor_ptr + row, 1.0 / total)
    if STORE:
        g_target = -mass
        if HAS_CAP:
            g_target = g_target * (1.0 - (z_target / cap) * (z_target / cap))
        if HALF_RANGE:
            g_target = g_target * (FP16_SCALE / total)
        # The sweep wrote 0 there, from another thread of this program: wait for it.
        tl.debug_barrier()
        tl.store(out_ptr + target, g_target.to(out_ptr.dtype.element_ty))


@triton.jit
def tile_pass_kernel(
    logits_ptr,
    out_ptr,
    targets_ptr,
    bias_ptr,
    reference_ptr,
    mass_ptr,
    factor_ptr,
    logits_stride,
    out_stride,
    width,
    scale,
    cap,
    HAS_BIAS: tl.constexpr,
    HAS_SCALE: tl.constexpr,
    HAS_CAP: tl.constexpr,
    HALF_RANGE: tl.constexpr,
    BLOCK: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    column = tl.program_id(1).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = column < width
    target = tl.load(targets_ptr + row).to(tl.int64)  # relative to the tile; outside [0, width): another tile's
    reference = tl.load(reference_ptr + row)
    mass = tl.load(mass_ptr + row)
    z = tl.load(logits_ptr + row * logits_stride + column, mask=inside, other=0.0).to(tl.float32)
    bias = 0.0
    if HAS_BIAS:
        bias = tl.load(bias_ptr + column, mask=inside, other=0.0).to(tl.float32)
    z = _transform(z, bias, scale, cap, HAS_BIAS, HAS_SCALE, HAS_CAP)
    g = tl.where(column == target, -mass, tl.exp(z - reference))
    if HAS_CAP:
        g = g * (1.0 - (z / cap) * (z / cap))
    if HALF_RANGE:
        g = g * (FP16_SCALE * tl.load(factor_ptr + row))
    tl.store(out_ptr + row * out_stride + column, g.to(out_ptr.dtype.element_ty), mask=inside)
