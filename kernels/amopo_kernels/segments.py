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

from amopo_kernels import backend


class SequenceStats(NamedTuple):
    """Per sequence, each `[S]`: sum of log-probs (differentiable), tokens, mean and variance of token probabilities."""

    sum_logp: Tensor
    length: Tensor
    mean_prob: Tensor
    var_prob: Tensor


def segment_moments(logps: Tensor, starts: Tensor, stops: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Sum, length, mean and population variance of `logps[start:stop]` per segment, in plain PyTorch.

    Segments do not overlap. `starts` and `stops` are int64 `[S]`, in any order. Results are `[S]`, in that order.
    """
    # segment_reduce wants ascending, adjoining segments: the gaps between them become segments of their own.
    rows = logps.shape[0]
    if starts.shape[0] == 0:
        return tuple(logps.new_empty(0) for _ in range(4))
    order = (starts * (rows + 1) + stops).argsort()
    edges = torch.stack([starts[order], stops[order]], 1).flatten()
    edges = torch.cat([edges.new_zeros(1), edges, edges.new_full((1,), rows)])
    lengths = edges[1:] - edges[:-1]
    values = logps.detach().to(torch.float64)
    probs = values.exp()
    divisor = lengths.clamp(min=1).to(torch.float64)
    mean = _segment_sum(probs, edges) / divisor
    centred = probs - torch.repeat_interleave(mean, lengths, output_size=rows)
    variance = _segment_sum(centred.square(), edges) / divisor
    place = torch.empty_like(order)
    place[order] = torch.arange(1, 2 * order.shape[0], 2, device=order.device)
    columns = (_segment_sum(values, edges), lengths.to(torch.float64), mean, variance)
    return tuple(column[place].to(logps.dtype) for column in columns)


def _segment_sum(values: Tensor, offsets: Tensor) -> Tensor:
    # segment_reduce is deterministic on every device, unlike index_add with its atomics on CUDA.
    return torch.segment_reduce(values, "sum", offsets=offsets, initial=0)


@torch.library.custom_op("amopo::expand_segments", mutates_args=())
def expand_segments(values: Tensor, starts: Tensor, stops: Tensor, length: int) -> Tensor:
    """`[length]`: each token gets the value of its segment, 0 where it has none. The backward of a segment sum."""
    module = backend.module_for("sequence_stats", values)
    if hasattr(module, "expand_segments"):
        return module.expand_segments(values, starts, stops, length)
    # The segment's number where it starts, its negative where it stops, then a running sum: exact, in integers.
    marks = torch.zeros(length + 1, dtype=torch.int64, device=values.device)
    number = torch.arange(1, starts.numel() + 1, device=values.device)
    marks.index_add_(0, starts.flatten(), number).index_add_(0, stops.flatten(), -number)
    owner = marks.cumsum(0)[:-1]
    return torch.cat([values.new_zeros(1), values.flatten()]).index_select(0, owner)


@expand_segments.register_fake
def _(values, starts, stops, length):
    return values.new_empty(length)


@torch.library.custom_op("amopo::sequence_stats", mutates_args=())
def _sequence_stats_op(logps: Tensor, offsets: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    module = backend.module_for("sequence_stats", logps)
    if module is not None:
        return module.sequence_stats(logps, offsets)
    return segment_moments(logps, offsets[:-1], offsets[1:])


@_sequence_stats_op.register_fake
def _(logps, offsets):
    return tuple(logps.new_empty(offsets.shape[0] - 1) for _ in range(4))


def _setup_context(ctx, inputs, output) -> None:
    ctx.set_materialize_grads(False)
    ctx.mark_non_differentiable(*output[1:])
    logps, offsets = inputs
    ctx.save_for_backward(offsets)
    ctx.length = logps.shape[0]


def _backward(ctx, grad_sums, *_):
    (offsets,) = ctx.saved_tensors
    if grad_sums is None:
        return None, None
    return expand_segments(grad_sums.contiguous(), offsets[:-1], offsets[1:], ctx.length), None


_sequence_stats_op.register_autograd(_backward, setup_context=_setup_context)


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
    return SequenceStats(*_sequence_stats_op(logps.contiguous(), offsets.to(torch.int64)))
