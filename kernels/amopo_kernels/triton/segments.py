"""Triton per-sequence statistics over unequal segments, one program per sequence.

The contract is that of `amopo_kernels.segments`: sum of log-probs, length, mean and population variance of the token
probabilities. Two sweeps over the segment (sums, then the centred second moment), vector partial sums, one fixed order:
bitwise equal from run to run.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def segment_moments(logps_ptr, start, stop, BLOCK: tl.constexpr):
    """Sum of log-probs, mean and population variance of probabilities of `logps[start:stop]`."""
    columns = tl.arange(0, BLOCK)
    sums = tl.zeros([BLOCK], tl.float32)
    probs = tl.zeros([BLOCK], tl.float32)
    for begin in range(start, stop, BLOCK):
        inside = begin + columns < stop
        logp = tl.load(logps_ptr + begin + columns, mask=inside, other=0.0)
        sums += logp
        probs += tl.where(inside, tl.exp(logp), 0.0)
    count = tl.maximum(stop - start, 1).to(tl.float32)
    mean = tl.sum(probs, 0) / count
    squares = tl.zeros([BLOCK], tl.float32)
    for begin in range(start, stop, BLOCK):
        inside = begin + columns < stop
        logp = tl.load(logps_ptr + begin + columns, mask=inside, other=0.0)
        centred = tl.where(inside, tl.exp(logp) - mean, 0.0)
        squares += centred * centred
    return tl.sum(sums, 0), mean, tl.sum(squares, 0) / count


@triton.jit
def sequence_stats_kernel(
    logps_ptr,
    offsets_ptr,
    sum_ptr,
    length_ptr,
    mean_ptr,
    var_ptr,
    BLOCK: tl.constexpr,
):
    sequence = tl.program_id(0)
    start = tl.load(offsets_ptr + sequence).to(tl.int32)
    stop = tl.load(offsets_ptr + sequence + 1).to(tl.int32)
    total, mean, variance = segment_moments(logps_ptr, start, stop, BLOCK)
    tl.store(sum_ptr + sequence, total)
    tl.store(length_ptr + sequence, (stop - start).to(tl.float32))
    tl.store(mean_ptr + sequence, mean)
    tl.store(var_ptr + sequence, variance)
