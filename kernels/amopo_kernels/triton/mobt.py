"""Triton Multi-Objective Bradley-Terry: a sample's weights, loss and 2K coefficients from log-probs, in one launch.

One program per sample does what `segments`, `mobt` and `weights` do in eager form: moments of the sample's 2K
sequences, pooled mean and deviation (Eq. 10), weights (gaussian with Philox in the kernel, mean, uniform, given), the
K log-sigmoid terms (Eq. 9), `dL / dlogp` of each sequence's tokens and what training logs. The backward is that
derivative times the upstream gradient. With MASKED an objective whose entry in `present` is 0 has no weight, no loss
and no gradient, and the weights are those of the others. Losses of samples are added by a second, deterministic
reduction outside: no atomics.
"""

from __future__ import annotations

import triton
import triton.language as tl

from amopo_kernels.triton.elementary import cos_turns, log1p
from amopo_kernels.triton.segments import segment_moments

# values of WEIGHTS
GIVEN, GAUSSIAN, MEAN, UNIFORM = 0, 1, 2, 3


@triton.jit
def _gaussian(seed, step, sample_id, objectives):
    """Standard normals of (seed, step, sample, objective): the first of `philox.gaussian_noise`'s pair."""
    zero = objectives * 0
    c0 = (zero + (step & 0xFFFFFFFF)).to(tl.uint32)
    c1 = (zero + (sample_id & 0xFFFFFFFF)).to(tl.uint32)
    c2 = (zero + ((sample_id >> 32) & 0xFFFFFFFF)).to(tl.uint32)
    w0, w1, _, _ = tl.philox(seed, c0, c1, c2, objectives.to(tl.uint32))
    # The upper 24 bits are exact in fp32: u1 in (0, 1], u2 in [0, 1).
    u1 = ((w0 >> 8).to(tl.float32) + 1.0) * 5.9604644775390625e-08
    u2 = (w1 >> 8).to(tl.float32) * 5.9604644775390625e-08
    return tl.sqrt(-2.0 * tl.log(u1)) * cos_turns(u2)


@triton.jit
def mobt_kernel(
    logps_ptr,
    starts_ptr,
    stops_ptr,
    given_ptr,
    sample_ids_ptr,
    step_ptr,
    present_ptr,
    loss_ptr,
    weights_ptr,
    coefficients_ptr,
    sums_ptr,
    lengths_ptr,
    logged_ptr,
    seed,
    num_objectives,
    beta,
    gamma,
    WEIGHTS: tl.constexpr,
    UNION: tl.constexpr,
    MASKED: tl.constexpr,
    OBJECTIVES: tl.constexpr,
    BLOCK: tl.constexpr,
):
    sample = tl.program_id(0)
    objectives = tl.arange(0, OBJECTIVES)
    real = objectives < num_objectives
    zeros = tl.zeros([OBJECTIVES], tl.float32)
    sum_w, sum_l, mean_w, mean_l, var_w, var_l = zeros, zeros, zeros, zeros, zeros, zeros
    count_w, count_l = zeros + 1.0, zeros + 1.0
    for k in range(0, num_objectives):
        sequence = (sample * num_objectives + k) * 2
        here = objectives == k
        start, stop = tl.load(starts_ptr + sequence).to(tl.int32), tl.load(stops_ptr + sequence).to(tl.int32)
        total, mean, variance = segment_moments(logps_ptr, start, stop, BLOCK)
        sum_w, mean_w, var_w = (
            tl.where(here, total, sum_w),
            tl.where(here, mean, mean_w),
            tl.where(here, variance, var_w),
        )
        count_w = tl.where(here, (stop - start).to(tl.float32), count_w)
        start, stop = tl.load(starts_ptr + sequence + 1).to(tl.int32), tl.load(stops_ptr + sequence + 1).to(tl.int32)
        total, mean, variance = segment_moments(logps_ptr, start, stop, BLOCK)
        sum_l, mean_l, var_l = (
            tl.where(here, total, sum_l),
            tl.where(here, mean, mean_l),
            tl.where(here, variance, var_l),
        )
        count_l = tl.where(here, (stop - start).to(tl.float32), count_l)

    if UNION:
        share_w = count_w / (count_w + count_l)
        share_l = count_l / (count_w + count_l)
        mu = share_w * mean_w + share_l * mean_l
        difference = mean_w - mean_l
        variance = share_w * var_w + share_l * var_l + share_w * share_l * difference * difference
    else:
        mu = mean_w + mean_l
        variance = var_w + var_l
    sigma = tl.sqrt(variance)

    position = sample * num_objectives + objectives
    counted = real
    if MASKED:
        counted = tl.load(present_ptr + position, mask=real, other=0) != 0
    if WEIGHTS == 0:  # GIVEN
        alpha = tl.load(given_ptr + position, mask=counted, other=0.0)
    elif WEIGHTS == 3:  # UNIFORM
        alpha = tl.where(counted, 1.0 / tl.sum(counted.to(tl.float32), 0), 0.0)
    else:
        score = mu
        if WEIGHTS == 1:  # GAUSSIAN
            sample_id = tl.load(sample_ids_ptr + sample)
            score = mu + sigma * _gaussian(seed, tl.load(step_ptr), sample_id, objectives)
        score = tl.where(counted, score, float("-inf"))
        alpha = tl.exp(score - tl.max(score, 0))
        alpha = alpha / tl.sum(alpha, 0)

    margin = beta * (sum_w / count_w - sum_l / count_l) - gamma
    # softplus(-m) and sigmoid(-m), both from exp(-|m|), which cannot overflow
    decay = tl.exp(-tl.abs(margin))
    softplus = tl.maximum(-margin, 0.0) + log1p(decay)
    slope = tl.where(counted, alpha * beta * tl.where(margin > 0.0, decay, 1.0) / (1.0 + decay), 0.0)
    tl.store(loss_ptr + sample, tl.sum(tl.where(counted, alpha * softplus, 0.0), 0))
    tl.store(weights_ptr + position, alpha, mask=real)
    tl.store(coefficients_ptr + 2 * position, -slope / count_w, mask=real)
    tl.store(coefficients_ptr + 2 * position + 1, slope / count_l, mask=real)
    tl.store(sums_ptr + 2 * position, sum_w, mask=real)
    tl.store(sums_ptr + 2 * position + 1, sum_l, mask=real)
    tl.store(lengths_ptr + 2 * position, count_w, mask=real)
    tl.store(lengths_ptr + 2 * position + 1, count_l, mask=real)

    # in the order of mobt.LOGGED
    reward_w, reward_l = beta * sum_w / count_w, beta * sum_l / count_l
    # Given weights need not add up to 1, and can all be 0 where objectives are absent; x ln x goes to 0 with x.
    total = tl.sum(tl.where(counted, alpha, 0.0), 0)
    share = tl.where(counted, alpha, 0.0) / tl.where(total > 0.0, total, 1.0)
    entropy = -tl.sum(tl.where(share > 0.0, share * tl.log(tl.where(share > 0.0, share, 1.0)), 0.0), 0)
    row = logged_ptr + sample * 10 * num_objectives + objectives
    tl.store(row, reward_w, mask=real)
    tl.store(row + num_objectives, reward_l, mask=real)
    tl.store(row + 2 * num_objectives, reward_w - reward_l, mask=real)
    tl.store(row + 3 * num_objectives, (reward_w > reward_l).to(tl.float32), mask=real)
    tl.store(row + 4 * num_objectives, sum_w, mask=real)
    tl.store(row + 5 * num_objectives, sum_l, mask=real)
    tl.store(row + 6 * num_objectives, alpha, mask=real)
    tl.store(row + 7 * num_objectives, mu, mask=real)
    tl.store(row + 8 * num_objectives, sigma, mask=real)
    tl.store(row + 9 * num_objectives, zeros + entropy, mask=real)


@triton.jit
def expand_segments_kernel(values_ptr, starts_ptr, stops_ptr, out_ptr, BLOCK: tl.constexpr):
    """`out[t] = values[sequence of t]`, one program per sequence; tokens of no sequence are left alone."""
    sequence = tl.program_id(0)
    start = tl.load(starts_ptr + sequence).to(tl.int32)
    stop = tl.load(stops_ptr + sequence).to(tl.int32)
    value = tl.load(values_ptr + sequence)
    columns = tl.arange(0, BLOCK)
    for begin in range(start, stop, BLOCK):
        tl.store(out_ptr + begin + columns, tl.zeros([BLOCK], tl.float32) + value, mask=begin + columns < stop)
