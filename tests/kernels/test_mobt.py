"""The multi-objective loss on statistics, against the specification on token lists."""

from __future__ import annotations

import pytest
import torch

from amopo_kernels import reference
from amopo_kernels.mobt import bradley_terry_losses, margins, pool_probabilities
from amopo_kernels.segments import SequenceStats, sequence_stats


def tokens(samples: int, objectives: int) -> list[list[list[torch.Tensor]]]:
    """Token log-probs per (sample, objective, side), of unequal lengths, one-token responses among them."""
    lengths = torch.randint(1, 9, (samples, objectives, 2))
    lengths[0, 0, 0] = 1
    return [
        [[-torch.rand(int(n), dtype=torch.float64).mul(3) for n in sides] for sides in sample] for sample in lengths
    ]


def statistics(batch: list[list[list[torch.Tensor]]]) -> SequenceStats:
    flat = [t for sample in batch for sides in sample for t in sides]
    offsets = torch.tensor([0, *(len(t) for t in flat)]).cumsum(0)
    shape = (len(batch), len(batch[0]), 2)
    return SequenceStats(*(field.view(shape) for field in sequence_stats(torch.cat(flat), offsets)))


@pytest.mark.parametrize("pooled", ["union", "sum"])
def test_pooled_moments_equal_those_of_the_tokens_themselves(pooled):
    batch = tokens(5, 3)
    stats = statistics(batch)
    mu, variance = pool_probabilities(stats.mean_prob, stats.var_prob, stats.length, pooled=pooled)
    for b, sample in enumerate(batch):
        chosen, rejected = zip(*sample, strict=True)
        exact_mu, exact_sigma = reference.weight_distribution(list(chosen), list(rejected), pooled=pooled)
        torch.testing.assert_close(mu[b], exact_mu, rtol=1e-12, atol=1e-14)
        torch.testing.assert_close(variance[b].sqrt(), exact_sigma, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("beta, gamma", [(0.8, 0.0), (5.0, 2.0), (0.1, -1.0)])
def test_losses_equal_the_specification(beta, gamma):
    batch = tokens(4, 3)
    stats = statistics(batch)
    weights = torch.softmax(torch.randn(4, 3, dtype=torch.float64), -1)
    losses = bradley_terry_losses(margins(stats.sum_logp, stats.length, beta=beta, gamma=gamma), weights)
    for b, sample in enumerate(batch):
        chosen, rejected = zip(*sample, strict=True)
        exact = reference.amopo_sample_loss(list(chosen), list(rejected), weights[b], beta=beta, gamma=gamma)
        torch.testing.assert_close(losses[b], exact, rtol=1e-12, atol=0.0)


def test_gradient_is_one_coefficient_per_sequence():
    """c_w = -alpha beta sigmoid(-m) / T_w and c_l with the other sign, as derived by hand from Eq. 9."""
    stats = statistics(tokens(3, 4))
    sums = stats.sum_logp.clone().requires_grad_()
    weights = torch.softmax(torch.randn(3, 4, dtype=torch.float64), -1).requires_grad_()
    margin = margins(sums, stats.length, beta=0.8, gamma=0.3)
    loss = bradley_terry_losses(margin, weights).sum()
    (gradient,) = torch.autograd.grad(loss, sums)
    slope = weights * 0.8 * torch.sigmoid(-margin)
    torch.testing.assert_close(gradient[..., 0], -slope / stats.length[..., 0])
    torch.testing.assert_close(gradient[..., 1], slope / stats.length[..., 1])


def test_huge_margins_neither_overflow_nor_vanish():
    margin = torch.tensor([[-1e4, 1e4]], requires_grad=True)
    loss = bradley_terry_losses(margin, torch.tensor([[0.5, 0.5]]))
    assert float(loss) == pytest.approx(5e3)
    assert torch.autograd.grad(loss.sum(), margin)[0].tolist() == [[-0.5, 0.0]]


def test_unknown_pooling_is_named():
    ones = torch.ones(1, 1, 2)
    with pytest.raises(ValueError, match="pooled must be one of union, sum, got 'both'"):
        pool_probabilities(ones, ones, ones, pooled="both")
