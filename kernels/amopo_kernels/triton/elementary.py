"""Elementary functions from core operations: libdevice is absent in Triton's interpreter."""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def log1p(x):
    """log(1 + x) for x >= 0, to fp32 rounding: the rounding of 1 + x is divided out again."""
    u = 1.0 + x
    return tl.where(u == 1.0, x, tl.log(u) * (x / tl.where(u == 1.0, 1.0, u - 1.0)))


@triton.jit
def tanh(x):
    """tanh(x) from exp(-2|x|), which cannot overflow; absolute error about 1e-7."""
    t = tl.exp(-2.0 * tl.abs(x))
    magnitude = (1.0 - t) / (1.0 + t)
    return tl.where(x < 0.0, -magnitude, magnitude)


@triton.jit
def cos_turns(u):
    """cos(2 pi u) for u in [0, 1), absolute error about 1e-7.

    The folds to a quarter turn are exact in fp32, and no general argument reduction (with its stack array) is needed.
    """
    v = tl.abs(u - 0.5)  # cos(2 pi u) = -cos(2 pi v), v in [0, 1/2]
    near_zero = v > 0.25
    w = tl.where(near_zero, 0.5 - v, v)
    y = w * w * 39.47841760435743
    series = 2.08767569878681e-09
    series = series * y - 2.7557319223985893e-07
    series = series * y + 2.48015873015873e-05
    series = series * y - 0.001388888888888889
    series = series * y + 0.041666666666666664
    series = series * y - 0.5
    series = series * y + 1.0
    return tl.where(near_zero, series, -series)
