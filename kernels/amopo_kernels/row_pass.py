"""Element-wise pass over logits: target-referenced exponentials, their mass, and the log-prob of the target.

For a row of logits z with target y (after scale, bias and softcap), in fp32 (fp64 for fp64):

    r    = z_y, or rowmax - 40 where rowmax - z_y > 40      e_y = exp(z_y - r)
    S    = sum_{v != y} exp(z_v - r)
    logp = -log1p(S), or (z_y - r) - log(e_y + S) where clamped
    G_v  = exp(z_v - r) for v != y,   G_y = -S              both times 1 - (z_v / cap)^2 with softcap
    factor = 1 / (e_y + S)

so that `softmax - onehot = factor * G` without subtracting two numbers close to one. The clamp is at 40: at 80 the sum
over 152k flat logits overflows fp32. fp16 cannot hold e^40, nor sums of a flat row: there G is stored as
`2^12 * softmax`, `G_y = -2^12 * S * factor`, and `factor` comes back as 2^-12.

Two entries: `row_pass` on whole rows (forward), `tile_pass` on a vocabulary slice of rows whose r and S are known
(backward). Both work in blocks so that fp32 temporaries stay small; `out` may be the logits themselves.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

CLAMP = 40.0
FP16_SCALE = 2.0**12


class RowState(NamedTuple):
    """What a row's G can be rebuilt from, each `[N]` in the accumulation dtype: reference r, mass S, factor."""

    reference: Tensor
    mass: Tensor
    factor: Tensor

    @classmethod
    def empty(cls, rows: int, dtype: torch.dtype, device: torch.device) -> RowState:
        return cls(*(torch.empty(rows, dtype=dtype, device=device) for _ in range(3)))

    def slice(self, rows: slice) -> RowState:
        return RowState(*(field[rows] for field in self))


class Transform(NamedTuple):
    """What stands between the product and the softmax: `softcap(scale * (product + bias))`."""

    scale: float | None = None
    softcap: float | None = None

    def apply_(self, logits: Tensor, bias: Tensor | None) -> Tensor:
        """In place on a block in the accumulation dtype."""
        if bias is not None:
            logits.add_(bias)
        if self.scale is not None:
            logits.mul_(self.scale)
        if self.softcap is not None:
            logits.div_(self.softcap).tanh_().mul_(self.softcap)
        return logits

    def damping(self, logits: Tensor) -> Tensor | None:
        """`d softcap / d u = 1 - (z / cap)^2`, or None."""
        if self.softcap is None:
            return None
        return logits.square().mul_(-1.0 / self.softcap**2).add_(1.0)


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
    """Fill `logp` and `state` from `logits[C, V]` and write G to `out` (None: no gradient is wanted).

    Args:
        targets: int64 `[C]` in `[0, V)`. out: `[C, V]`, may be `logits`. half_range: store G in fp16's range.
        block_rows: rows per element-wise block.
    """
    for start in range(0, logits.shape[0], block_rows):
        rows = slice(start, start + block_rows)
        _row_block(
            logits[rows],
            targets[rows, None],
            bias,
            transform,
            logp[rows],
            state.slice(rows),
            None if out is None else out[rows],
            half_range,
        )


def _row_block(
    logits: Tensor,
    target: Tensor,
    bias: Tensor | None,
    transform: Transform,
    logp: Tensor,
    state: RowState,
    out: Tensor | None,
    half_range: bool,
) -> None:
    z = transform.apply_(logits.to(logp.dtype), bias)  # in place when the logits have that dtype already
    z_target = z.gather(1, target)
    row_max = z.amax(1, keepdim=True)
    clamped = row_max - z_target > CLAMP
    reference = torch.where(clamped, row_max - CLAMP, z_target)
    damping = transform.damping(z) if out is not None else None
    exponentials = z.sub_(reference).exp_()
    exp_target = torch.exp(z_target - reference)
    mass = exponentials.scatter_(1, target, 0.0).sum(1, keepdim=True)
    total = exp_target + mass
    # times e_y, which is 1, or NaN where the target's logit is +inf, as log_softmax has it
    plain = -torch.log1p(mass) * exp_target
    logp.copy_(torch.where(clamped, (z_target - reference) - torch.log(total), plain)[:, 0])
    for field, value in zip(state, (reference, mass, total.reciprocal()), strict=True):
        field.copy_(value[:, 0])
    if out is None:
        return
    exponentials.scatter_(1, target, -mass)
    _store(exponentials, damping, state, out, half_range)


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
    """Write G of a vocabulary tile to `out[C, T]`, from its logits and the rows' known r and S.

    Args:
        targets: int64 `[C]`, relative to the tile's first column; any value outside `[0, T)` lies in another tile.
    """
    width = logits.shape[1]
    for start in range(0, logits.shape[0], block_rows):
        rows = slice(start, start + block_rows)
        block = state.slice(rows)
        z = transform.apply_(logits[rows].to(state.mass.dtype), bias)
        damping = transform.damping(z)
        exponentials = z.sub_(block.reference[:, None]).exp_()
        target = targets[rows, None]
        inside = (target >= 0) & (target < width)
        column = target.clamp(0, width - 1)
        exponentials.scatter_(1, column, torch.where(inside, -block.mass[:, None], exponentials.gather(1, column)))
        _store(exponentials, damping, block, out[rows], half_range)


def _store(exponentials: Tensor, damping: Tensor | None, state: RowState, out: Tensor, half_range: bool) -> None:
    if damping is not None:
        exponentials.mul_(damping)
    if half_range:
        exponentials.mul_((FP16_SCALE * state.factor)[:, None])
    if out.data_ptr() != exponentials.data_ptr():
        out.copy_(exponentials)


def gradient_factor(state: RowState, half_range: bool) -> Tensor:
    """The `[N]` vector that turns stored G into `softmax - onehot`."""
    return torch.full_like(state.factor, 1.0 / FP16_SCALE) if half_range else state.factor
