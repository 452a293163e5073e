"""SimPO's loss: the length-normalised log-sigmoid of one margin (Meng et al., NeurIPS 2024, Eq. 6)."""

from __future__ import annotations

from torch import Tensor

from amopo_kernels.mobt import bradley_terry_losses, margins, uniform_weights


def simpo(
    sum_logps: Tensor,
    lengths: Tensor,
    weights: Tensor,
    *,
    beta: float,
    gamma: float = 0.0,
    present: Tensor | None = None,
) -> Tensor:
    """`L = mean_k softplus(-(beta * (A_kw - A_kl) - gamma))`; `weights` are not used. With K = 1 this is SimPO itself.

    The mean is over the objectives that are `present` (bool `[B, K]`; None: all). `gamma` is in the units of the
    margin: SimPO's `gamma_beta_ratio` times beta.
    """
    margin = margins(sum_logps, lengths, beta=beta, gamma=gamma)
    return bradley_terry_losses(margin, uniform_weights(margin, present), present)
