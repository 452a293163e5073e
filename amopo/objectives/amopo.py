"""AMoPO's loss: a weighted sum of K length-normalised log-sigmoid terms (Liu et al. 2025, Eq. 9)."""

from __future__ import annotations

from torch import Tensor

from amopo_kernels.mobt import bradley_terry_losses, margins


def amopo(
    sum_logps: Tensor,
    lengths: Tensor,
    weights: Tensor,
    *,
    beta: float,
    gamma: float = 0.0,
    present: Tensor | None = None,
) -> Tensor:
    """`L = sum_k alpha_k * softplus(-(beta * (A_kw - A_kl) - gamma))`, `A = sum_logp / length`, alpha constant.

    Args:
        sum_logps, lengths: `[B, K, 2]`, the response that objective k prefers = index 0. weights: `[B, K]`, each row
            summing to 1.
        beta: scale of the mean log-prob difference. gamma: margin; Eq. 9 has none, the paper's Table 4 lists 2.
        present: bool `[B, K]`; the other objectives add nothing, whatever their log-probs are. None: all are.
    Returns:
        `[B]` losses.
    """
    return bradley_terry_losses(margins(sum_logps, lengths, beta=beta, gamma=gamma), weights, present)
