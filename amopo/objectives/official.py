"""The arithmetic of the released AMoPO trainer, for parity (`preset="official"`).

It differs from the paper in four places: margin gamma = 2; the standard deviation is unbiased; one draw for the chosen
and one for the rejected response, added; the softmax runs over all K * B entries of the micro-batch and the loss is
the mean over K * B. So a sample's weight depends on which others share its micro-batch.

Not reproduced: probabilities that underflow to exactly 0 are dropped there (here they count), and a one-token response
makes its standard deviation NaN there (here 0).
"""

from __future__ import annotations

import torch
from torch import Tensor

from amopo_kernels.mobt import bradley_terry_losses
from amopo_kernels.segments import SequenceStats

GAMMA = 2.0


def official_weights(stats: SequenceStats, noise: Tensor) -> Tensor:
    """Softmax over all K * B entries of `draw(chosen) + draw(rejected)`.

    Args:
        stats: fields `[B, K, 2]`. noise: `[B, K, 2]` standard normals.
    Returns:
        `[B, K]`, summing to 1 over the whole tensor.
    """
    unbiased = stats.var_prob * stats.length / (stats.length - 1.0).clamp(min=1.0)
    scores = (stats.mean_prob + unbiased.sqrt() * noise.to(unbiased.dtype)).sum(-1)
    return torch.softmax(scores.flatten(), dim=0).view_as(scores)


def official_losses(margin: Tensor, weights: Tensor) -> Tensor:
    """`[B]` terms whose mean over samples is the released loss, the mean over K * B of weight times loss."""
    return bradley_terry_losses(margin, weights) / margin.shape[1]
