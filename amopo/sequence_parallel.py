"""Statistics of sequences whose tokens are spread over the ranks of a group (sequence parallelism).

Contract: each rank has the log-probs of its own tokens, with offsets `[S + 1]` of the same S sequences (a sequence may
have none here, and a rank none at all). `sequence_stats_over_ranks(logps, offsets, group)` gives what `sequence_stats`
would of all tokens, the same on every rank. Reduced are (sum of log-probs, T, sum of p) first, then the second moment
about the common mean: two all-reduces of `[3 S]` and `[S]` in fp64. `E[p^2] - E[p]^2` of sums would cancel.

Gradients: every rank computes the same loss of the same sums, so the gradient of a rank's log-probs is the gradient of
the sums, as it is: nothing is communicated in the backward. Added up over the group (not averaged), the ranks'
parameter gradients are those of the whole. So with D as what the wrapper divides gradients by, the loss is normalised
by `samples of the step / D`, where a sample counts once. D is the number of all ranks under DDP, FSDP2 and ZeRO-3, and
of the data-parallel ranks under ZeRO-1 and ZeRO-2 (DeepSpeed 0.19).
"""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from amopo_kernels.segments import SequenceStats, sequence_stats


class _SumOverRanks(torch.autograd.Function):
    """The sum over a group's ranks, whose upstream gradient is the same on all of them."""

    @staticmethod
    def forward(ctx, values: Tensor, group: Any) -> Tensor:
        total = values.clone()
        dist.all_reduce(total, group=group)
        return total

    @staticmethod
    def backward(ctx, grad: Tensor) -> tuple[Tensor, None]:
        return grad, None


def sequence_stats_over_ranks(logps: Tensor, offsets: Tensor, group: Any) -> SequenceStats:
    """Sum of log-probs (differentiable), length, mean and population variance of probabilities, `[S]` each."""
    local = SequenceStats(*(field.double() for field in sequence_stats(logps, offsets)))
    length, mean = local.length, local.mean_prob
    total_logp, total_length, total_prob = _SumOverRanks.apply(
        torch.stack([local.sum_logp, length, length * mean]), group
    )
    total_length, total_prob = total_length.detach(), total_prob.detach()
    tokens = total_length.clamp(min=1.0)
    common = total_prob / tokens
    # Exactly the sum of (p - common mean)^2 over this rank's tokens.
    moment = length * (local.var_prob + (mean - common).square())
    dist.all_reduce(moment, group=group)
    return SequenceStats(*(part.to(logps.dtype) for part in (total_logp, total_length, common, moment / tokens)))


def lengths_over_ranks(lengths: Tensor, group: Any) -> Tensor:
    """Tokens of every sequence, int64 `[S]`, from those that each rank of the group holds."""
    total = lengths.clone()
    dist.all_reduce(total, group=group)
    return total


def same_on_ranks(weights: Tensor, group: Any) -> Tensor:
    """The weights of the group's first rank, so that no difference in rounding or drawing can part the ranks."""
    weights = weights.contiguous()
    dist.broadcast(weights, dist.get_global_rank(group, 0), group=group)
    return weights
