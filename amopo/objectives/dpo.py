"""DPO's loss: log-sigmoid of rewards relative to a reference model (Rafailov et al., NeurIPS 2023, Eq. 7)."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from amopo_kernels.mobt import bradley_terry_losses


def dpo(reference: Tensor) -> Callable[..., Tensor]:
    """The objective `L = sum_k alpha_k * softplus(-(beta * (r_kw - r_kl) - gamma))`, `r = sum_logp - reference`.

    Sums, not means per token. With K = 1, `weights="uniform"` and gamma 0 this is DPO itself. There is one per batch,
    since it holds the batch's reference: `fused_loss(..., objective=dpo(reference))`.

    Args:
        reference: `[B, K, 2]`, summed log-probs of the same responses under the reference model, chosen = index 0.
            Batches with signs, whose objectives prefer different responses, are refused.
    """
    reference = reference.detach()

    def objective(sum_logps: Tensor, lengths: Tensor, weights: Tensor, *, beta: float, gamma: float = 0.0) -> Tensor:
        if reference.shape != sum_logps.shape:
            raise ValueError(
                f"the reference log-probs are {tuple(reference.shape)}, but the batch's {tuple(sum_logps.shape)}"
            )
        ratios = sum_logps - reference.to(sum_logps)
        return bradley_terry_losses(beta * (ratios[..., 0] - ratios[..., 1]) - gamma, weights)

    objective.chosen_first = True  # type: ignore[attr-defined]
    return objective
