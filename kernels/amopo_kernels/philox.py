"""Counter-based Gaussian noise: the same numbers for any batching, packing, rank or resume.

`gaussian_noise(sample_ids[B], K, seed=, step=) -> [B, K, 2]` standard normals, a pure function of
(seed, step, sample id, objective): Philox4x32-10 (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC
2011), then Box-Muller. The specification on Python integers is `reference.gaussian_noise`.

Counter = (step, id low, id high, objective), key = seed. Uniforms keep the upper 24 bits of a word, exact in fp32,
so that fp32 kernels and this fp64 form agree to fp32 rounding; the largest |noise| is 5.77.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

_MASK32 = 0xFFFFFFFF
_ROUNDS = 10
_MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
_WEYL = (0x9E3779B9, 0xBB67AE85)


def _multiply_high_low(a: int, b: Tensor) -> tuple[Tensor, Tensor]:
    """Upper and lower 32 bits of `a * b` for 32-bit unsigned values held in int64.

    The full product needs 64 unsigned bits and int64 has 63, so the high half comes from 16-bit pieces of `b`; the low
    half is right even where the product wraps.
    """
    low_piece = a * (b & 0xFFFF)
    high = (a * (b >> 16) + (low_piece >> 16)) >> 16
    return high & _MASK32, (a * b) & _MASK32


def philox4x32(counter: Tensor, key: tuple[int, int]) -> Tensor:
    """Philox4x32-10 on a batch of counters.

    Args:
        counter: `[..., 4]` int64 holding 32-bit unsigned words. key: two 32-bit words.
    Returns:
        `[..., 4]` int64 holding 32-bit unsigned words.
    """
    c0, c1, c2, c3 = counter.unbind(-1)
    k0, k1 = key
    for _ in range(_ROUNDS):
        high0, low0 = _multiply_high_low(_MULTIPLIERS[0], c0)
        high1, low1 = _multiply_high_low(_MULTIPLIERS[1], c2)
        c0, c1, c2, c3 = high1 ^ c1 ^ k0, low1, high0 ^ c3 ^ k1, low0
        k0, k1 = (k0 + _WEYL[0]) & _MASK32, (k1 + _WEYL[1]) & _MASK32
    return torch.stack([c0, c1, c2, c3], dim=-1)


def gaussian_noise(sample_ids: Tensor, num_objectives: int, *, seed: int, step: int | Tensor) -> Tensor:
    """Two standard normals per (sample, objective).

    Args:
        sample_ids: int64 `[B]`, any values. seed: 64 bits. step: 32 bits (taken modulo 2**32), an int or a 0-dim
            int64 tensor (which needs no host sync).
    Returns:
        fp64 `[B, K, 2]` on the device of `sample_ids`.
    """
    batch = sample_ids.shape[0]
    ids = sample_ids.to(torch.int64)[:, None].expand(batch, num_objectives)
    objectives = torch.arange(num_objectives, device=ids.device).expand(batch, num_objectives)
    if isinstance(step, Tensor):
        steps = (step.to(ids.device, non_blocking=True) & _MASK32).expand(batch, num_objectives)
    else:
        steps = torch.full_like(objectives, step & _MASK32)
    counter = torch.stack([steps, ids & _MASK32, (ids >> 32) & _MASK32, objectives], dim=-1)
    words = philox4x32(counter, (seed & _MASK32, (seed >> 32) & _MASK32))
    uniform = (words >> 8).to(torch.float64) * 2.0**-24
    radius = torch.sqrt(-2.0 * torch.log(uniform[..., 0::2] + 2.0**-24))
    return radius * torch.cos(2.0 * math.pi * uniform[..., 1::2])
