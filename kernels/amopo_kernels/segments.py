"""Per-sequence statistics of token log-probs over unequal segments.

Contract: `sequence_stats(logps[N], offsets[S + 1]) -> SequenceStats`, four `[S]` tensors. Sequence `s` owns
`logps[offsets[s]:offsets[s + 1]]`; rows are compacted (response tokens only, no padding). Sums run in fp64 and come
back in the dtype of `logps` (fp32, or fp64 for fp64). Only `sum_logp` carries gradients: one coefficient per sequence.

Mean and population variance of the token probabilities are those of AMoPO's Eq. 10, in two passes: `E[p^2] - E[p]^2`
cancels for confident tokens. Memory: a few `[N]` vectors. An empty sequence gives zeros here; callers that know the
sample refuse it by name.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class SequenceStats(NamedTuple):
    """Per sequence, each `[S]`: sum of log-probs (differentiable), tokens, mean and variance of token probabilities."""

    sum_logp: Tensor
    length: Tensor
    mean_prob: Tensor
    var_prob: Tensor


def _segment_sum(values: Tensor, offsets: Tensor) -> Tensor:
    # segment_reduce is deterministic on every device, unlike index_add with its atomics on CUDA.
    return torch.segment_reduce(values, "sum", offsets=offsets, initial=0)


def sequence_stats(logps: Tensor, offsets: Tensor) -> SequenceStats:
    """Sum of log-probs, length, mean and population variance of token probabilities per sequence.

    Args:
        logps: fp32 or fp64 `[N]`, natural-log token probabilities.
        offsets: int32/int64 `[S + 1]`, ascending from 0 to N, on the device of `logps`.
    Raises:
        ValueError, TypeError: wrong shape, dtype or device.
    """
    if logps.dim() != 1:
        raise ValueError(f"sequence_stats: logps must be [N], got shape {tuple(logps.shape)}; pass compacted rows only")
    if logps.dtype not in (torch.float32, torch.float64):
        raise TypeError(f"sequence_stats: logps must be float32 or float64, got {logps.dtype}; call .float() first")
    if offsets.dim() != 1 or offsets.shape[0] < 1 or offsets.is_floating_point():
        raise ValueError(
            f"sequence_stats: offsets must be an integer [S + 1] tensor, got {offsets.dtype} {tuple(offsets.shape)}"
        )
    if offsets.device != logps.device:
        raise ValueError(f"sequence_stats: logps is on {logps.device} and offsets on {offsets.device}; move one")
    offsets = offsets.to(torch.int64)
    lengths = offsets[1:] - offsets[:-1]
    counts = lengths.to(torch.float64)
    divisor = counts.clamp(min=1.0)

    sum_logp = _segment_sum(logps.to(torch.float64), offsets)
    with torch.no_grad():
        probs = logps.detach().to(torch.float64).exp()
        mean = _segment_sum(probs, offsets) / divisor
        centred = probs - torch.repeat_interleave(mean, lengths, output_size=logps.shape[0])
        variance = _segment_sum(centred.square(), offsets) / divisor
    dtype = logps.dtype
    return SequenceStats(sum_logp.to(dtype), counts.to(dtype), mean.to(dtype), variance.to(dtype))
