"""Multi-Objective Bradley-Terry in eager form: a weighted sum of K log-sigmoid terms per sample.

Inputs are per-sequence statistics `[B, K, 2]` (chosen = index 0), outputs per-sample losses `[B]`. Everything is
`[B, K]`-sized, so this eager form costs microseconds; the gradient with respect to a sequence's log-prob sum is one
scalar, which is all that the head's backward needs.

Source: AMoPO, Liu et al. 2025, Eq. 9 (loss, without margin offset) and Eq. 10 (mean and variance).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from amopo_kernels.philox import gaussian_noise
from amopo_kernels.segments import segment_moments

POOLING = ("union", "sum")

# What `logged_values` holds, one row each.
LOGGED = (
    "reward_chosen",  # beta * mean token log-prob
    "reward_rejected",
    "margin",  # their difference, without gamma
    "accuracy",  # 1 where the margin is positive
    "logp_chosen",  # sum of token log-probs
    "logp_rejected",
    "weight",
    "mean",  # of the token probabilities of both responses, pooled
    "std",
    "entropy",  # of the sample's weights; the same number for every objective
)


def pool_probabilities(
    mean: Tensor, variance: Tensor, lengths: Tensor, *, pooled: str = "union"
) -> tuple[Tensor, Tensor]:
    """Mean and variance of token probabilities over both responses of each (sample, objective).

    `"union"` merges the two token sets (Chan et al. 1979): exact, and no `E[p^2] - E[p]^2`. `"sum"` adds means and
    variances, as the released AMoPO code does.

    Args:
        mean, variance, lengths: `[B, K, 2]`.
    Returns:
        two `[B, K]` tensors.
    """
    (mean_w, mean_l), (var_w, var_l) = mean.unbind(-1), variance.unbind(-1)
    if pooled == "sum":
        return mean_w + mean_l, var_w + var_l
    if pooled != "union":
        raise ValueError(f"pooled must be one of {', '.join(POOLING)}, got {pooled!r}")
    tokens_w, tokens_l = lengths.unbind(-1)
    total = (tokens_w + tokens_l).clamp(min=1.0)
    share_w, share_l = tokens_w / total, tokens_l / total
    mu = share_w * mean_w + share_l * mean_l
    var = share_w * var_w + share_l * var_l + share_w * share_l * (mean_w - mean_l).square()
    return mu, var


def margins(sum_logps: Tensor, lengths: Tensor, *, beta: float, gamma: float = 0.0) -> Tensor:
    """`m = beta * (A_w - A_l) - gamma` with `A` the mean token log-prob; `[B, K, 2] -> [B, K]`."""
    average = sum_logps / lengths
    return beta * (average[..., 0] - average[..., 1]) - gamma


def bradley_terry_losses(margin: Tensor, weights: Tensor, present: Tensor | None = None) -> Tensor:
    """Per-sample `sum_k weights_k * softplus(-margin_k)`; `[B, K] -> [B]`. Weights are constants of the gradient.

    present: bool `[B, K]`; the other objectives add nothing and get no gradient, also where their margin is NaN.
    """
    if present is not None:
        margin = margin.masked_fill(~present, 0.0)
    terms = weights.detach() * F.softplus(-margin)
    return torch.sum(terms if present is None else terms.masked_fill(~present, 0.0), dim=-1)


def softmax_weights(scores: Tensor, present: Tensor | None = None) -> Tensor:
    """Softmax over the objectives of each sample; over those `present` (bool `[B, K]`), exactly 0 for the others."""
    return torch.softmax(scores if present is None else scores.masked_fill(~present, -torch.inf), dim=-1)


def uniform_weights(like: Tensor, present: Tensor | None = None) -> Tensor:
    """The same weight `[B, K]` for every objective of a sample that is present, 0 for the others."""
    if present is None:
        return torch.full_like(like, 1.0 / like.shape[1])
    return present.to(like.dtype) / present.sum(-1, keepdim=True).to(like.dtype)


def logged_values(sums: Tensor, lengths: Tensor, weights: Tensor, mean: Tensor, std: Tensor, beta: float) -> Tensor:
    """What training logs of each (sample, objective): `[B, len(LOGGED), K]`, detached, in the order of `LOGGED`.

    Args:
        sums, lengths: `[B, K, 2]`. weights, mean, std: `[B, K]`.
    """
    with torch.no_grad():
        rewards = beta * sums / lengths
        margin = rewards[..., 0] - rewards[..., 1]
        total = weights.sum(-1, keepdim=True)
        share = weights / torch.where(total > 0, total, 1.0)  # all 0 where only objectives without weight are left
        entropy = torch.special.entr(share).sum(-1, keepdim=True).expand_as(weights)
        columns = (
            rewards[..., 0], rewards[..., 1], margin, (margin > 0).to(margin.dtype), sums[..., 0], sums[..., 1],
            weights, mean, std, entropy,
        )  # fmt: skip
        return torch.stack(columns, dim=1)


def mobt_eager(
    logps: Tensor,
    starts: Tensor,
    stops: Tensor,
    *,
    weights: str,
    given: Tensor | None,
    sample_ids: Tensor,
    seed: int,
    step: Tensor,
    beta: float,
    gamma: float,
    pooled: str,
    present: Tensor | None = None,
) -> tuple[Tensor, ...]:
    """The whole objective in plain PyTorch; see `mobt_op.mobt` for arguments and results."""
    shape = starts.shape
    stats = [field.view(shape) for field in segment_moments(logps, starts.flatten(), stops.flatten())]
    sums, lengths, means, variances = stats
    mean, variance = pool_probabilities(means, variances, lengths, pooled=pooled)
    std = variance.clamp(min=0.0).sqrt()
    if weights == "given":
        alpha = given.to(mean.dtype, copy=True)
        alpha = alpha if present is None else alpha.masked_fill(~present, 0.0)
    elif weights == "uniform":
        alpha = uniform_weights(mean, present)
    else:
        noise = gaussian_noise(sample_ids, shape[1], seed=seed, step=step)[..., 0] if weights == "gaussian" else 0.0
        alpha = softmax_weights((mean.double() + std.double() * noise).to(mean.dtype), present)
    margin = margins(sums, lengths, beta=beta, gamma=gamma)
    slope = alpha * beta * torch.sigmoid(-margin)
    slope = slope if present is None else slope.masked_fill(~present, 0.0)
    coefficients = torch.stack([-slope / lengths[..., 0], slope / lengths[..., 1]], dim=-1)
    logged = logged_values(sums, lengths, alpha, mean, std, beta)
    return bradley_terry_losses(margin, alpha, present), alpha, coefficients, sums, lengths, logged
