"""From token log-probs to per-sample losses in one operator, with one coefficient per sequence as its gradient.

    mobt(logps[N], starts[B, K, 2], stops[B, K, 2], weights=..., ...) -> Mobt

Sequence (b, k, chosen | rejected) owns `logps[start:stop]`. The forward computes moments, weights, losses and the
derivative of the loss with respect to the sequence's log-probs; the backward multiplies it with the upstream gradient
and hands it to the sequence's tokens. Triton and C++ do all of it in one launch; the eager form composes `segments`,
`mobt` and `philox`. Sources: AMoPO, Liu et al. 2025, Eq. 9 and 10.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from amopo_kernels import backend
from amopo_kernels.mobt import LOGGED, mobt_eager
from amopo_kernels.segments import expand_segments

SOURCES = ("gaussian", "mean", "uniform", "given")


class Mobt(NamedTuple):
    """losses `[B]` and sums `[B, K, 2]` (both differentiable), weights `[B, K]`, coefficients and lengths `[B, K, 2]`.

    logged: `[B, len(LOGGED), K]`, see `mobt.LOGGED`; a mean over the samples makes them metrics.
    """

    losses: Tensor
    weights: Tensor
    coefficients: Tensor
    sums: Tensor
    lengths: Tensor
    logged: Tensor


def mobt(
    logps: Tensor,
    starts: Tensor,
    stops: Tensor,
    *,
    weights: str,
    given: Tensor | None = None,
    sample_ids: Tensor,
    seed: int,
    step: Tensor,
    beta: float,
    gamma: float,
    pooled: str,
    present: Tensor | None = None,
) -> Mobt:
    """Weighted multi-objective Bradley-Terry losses of token log-probs.

    Args:
        logps: fp32 or fp64 `[N]`. starts, stops: int64 `[B, K, 2]`. weights: "gaussian", "mean", "uniform", or "given"
            with `given [B, K]`. sample_ids: int64 `[B]`; seed: 64 bits; step: int64 tensor with one element (keys of
            the noise). pooled: "union" or "sum".
        present: bool `[B, K]`, at least one objective per sample: the others have weight 0, no loss and no gradient,
            and the weights are those of the objectives that are present. None: all are.
    """
    if weights not in SOURCES:
        raise ValueError(f"weights must be one of {', '.join(SOURCES)}, got {weights!r}")
    signed_seed = seed - (1 << 64) if seed >= 1 << 63 else seed
    return Mobt(
        *_mobt_op(
            logps, starts, stops, weights, given, sample_ids, signed_seed, step, float(beta), float(gamma), pooled,
            present,
        )
    )  # fmt: skip


@torch.library.custom_op("amopo::mobt", mutates_args=())
def _mobt_op(
    logps: Tensor,
    starts: Tensor,
    stops: Tensor,
    weights: str,
    given: Tensor | None,
    sample_ids: Tensor,
    seed: int,
    step: Tensor,
    beta: float,
    gamma: float,
    pooled: str,
    present: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    module = backend.module_for("mobt", logps)
    run = mobt_eager if module is None else module.mobt
    return run(
        logps, starts, stops, weights=weights, given=given, sample_ids=sample_ids, seed=seed, step=step,
        beta=beta, gamma=gamma, pooled=pooled, present=present,
    )  # fmt: skip


@_mobt_op.register_fake
def _(logps, starts, stops, weights, given, sample_ids, seed, step, beta, gamma, pooled, present=None):
    samples, objectives, _ = starts.shape
    pair, logged = (samples, objectives, 2), (samples, len(LOGGED), objectives)
    shapes = ((samples,), (samples, objectives), pair, pair, pair, logged)
    return tuple(logps.new_empty(shape) for shape in shapes)


def _setup_context(ctx, inputs, output) -> None:
    ctx.set_materialize_grads(False)
    losses, weights, coefficients, sums, *others = output
    ctx.mark_non_differentiable(weights, coefficients, *others)
    ctx.save_for_backward(inputs[1], inputs[2], coefficients)
    ctx.length = inputs[0].shape[0]


def _backward(ctx, grad_losses, _weights, _coefficients, grad_sums, *_):
    starts, stops, coefficients = ctx.saved_tensors
    parts = []
    if grad_losses is not None:
        parts.append(coefficients * grad_losses[:, None, None])
    if grad_sums is not None:
        parts.append(grad_sums)
    grad = expand_segments(sum(parts), starts, stops, ctx.length) if parts else None
    return (grad, *(None,) * 11)


_mobt_op.register_autograd(_backward, setup_context=_setup_context)
