"""The fused objective as one operator: against the specification, in any order of segments, with its gradient."""

from __future__ import annotations

import os

import pytest
import torch

from amopo_kernels import reference
from amopo_kernels.mobt_op import _mobt_op, mobt

TRITON = os.environ.get("AMOPO_BACKEND") == "triton"
DTYPES = [(torch.float32, 3e-6)] if TRITON else [(torch.float64, 1e-12), (torch.float32, 3e-6)]


class Tokens:
    """Token log-probs of B samples and K objectives in a random order of segments, with a gap between two of them."""

    def __init__(self, samples, objectives, dtype, longest=40):
        count = samples * objectives * 2
        lengths = torch.randint(1, longest, (count,))
        lengths[0] = 1
        order = torch.randperm(count)
        starts, position = torch.empty(count, dtype=torch.int64), 3
        for sequence in order.tolist():
            starts[sequence] = position
            position += int(lengths[sequence])
        self.starts = starts.view(samples, objectives, 2)
        self.stops = (starts + lengths).view(samples, objectives, 2)
        self.logps = (-torch.rand(position + 2, dtype=torch.float64).exponential_()).to(dtype).requires_grad_()
        self.ids = torch.randint(0, 2**62, (samples,))
        self.shape = samples, objectives

    def run(self, **options):
        options = {"weights": "gaussian", "seed": 2**64 - 7, "step": torch.tensor(5), **options}
        options = {"beta": 0.8, "gamma": 0.3, "pooled": "union", "sample_ids": self.ids, **options}
        return mobt(self.logps, self.starts, self.stops, **options)

    def exact(self, logps, *, weights="gaussian", beta=0.8, gamma=0.3, pooled="union", given=None):
        losses, alphas = [], []
        for b in range(self.shape[0]):
            sides = [
                [logps[self.starts[b, k, s] : self.stops[b, k, s]] for k in range(self.shape[1])] for s in range(2)
            ]
            mu, sigma = reference.weight_distribution(*sides, pooled=pooled)
            noise = [reference.gaussian_noise(2**64 - 7, 5, int(self.ids[b]), k)[0] for k in range(self.shape[1])]
            scores = {
                "gaussian": mu + sigma * torch.tensor(noise, dtype=torch.float64),
                "mean": mu,
                "uniform": mu * 0.0,
            }
            alpha = given[b] if weights == "given" else torch.softmax(scores[weights].detach(), 0)
            alphas.append(alpha)
            losses.append(reference.amopo_sample_loss(*sides, alpha, beta=beta, gamma=gamma))
        return torch.stack(losses), torch.stack(alphas)


@pytest.mark.parametrize("dtype, tol", DTYPES, ids=str)
@pytest.mark.parametrize("objectives", [1, 3, 8, 64])
@pytest.mark.parametrize(
    "weights, pooled", [("gaussian", "union"), ("gaussian", "sum"), ("mean", "union"), ("uniform", "union")]
)
def test_losses_weights_and_gradient_match_fp64(dtype, tol, objectives, weights, pooled):
    tokens = Tokens(2, objectives, dtype)
    result = tokens.run(weights=weights, pooled=pooled)
    logps = tokens.logps.detach().double().requires_grad_()
    losses, alphas = tokens.exact(logps, weights=weights, pooled=pooled)
    torch.testing.assert_close(result.losses.double(), losses, rtol=tol, atol=tol)
    torch.testing.assert_close(result.weights.double(), alphas, rtol=tol, atol=tol)
    upstream = torch.tensor([2.0, -0.7], dtype=torch.float64)
    (exact,) = torch.autograd.grad(losses, logps, upstream)
    (got,) = torch.autograd.grad(result.losses, tokens.logps, upstream.to(dtype))
    torch.testing.assert_close(got.double(), exact, rtol=20 * tol, atol=tol)


@pytest.mark.parametrize("dtype, tol", DTYPES, ids=str)
@pytest.mark.parametrize("weights, pooled", [("gaussian", "union"), ("given", "union"), ("mean", "sum")])
def test_what_training_logs_matches_fp64(dtype, tol, weights, pooled):
    tokens = Tokens(2, 5, dtype)
    given = torch.rand(2, 5).to(dtype) if weights == "given" else None
    if weights == "given":
        given[0, 1] = 0.0  # adds nothing to the entropy
    result = tokens.run(weights=weights, pooled=pooled, given=given, beta=2.0)
    logps = tokens.logps.detach().double()
    for sample in range(2):
        sides = [[logps[tokens.starts[sample, k, s] : tokens.stops[sample, k, s]] for k in range(5)] for s in range(2)]
        alpha = result.weights[sample].detach().double()
        exact = reference.logged_values(*sides, alpha, beta=2.0, pooled=pooled)
        torch.testing.assert_close(result.logged[sample].double(), exact, rtol=10 * tol, atol=10 * tol)
    assert not result.logged.requires_grad


def test_given_weights():
    tokens = Tokens(2, 3, torch.float32)
    given = torch.softmax(torch.randn(2, 3), -1)
    result = tokens.run(weights="given", given=given)
    losses, _ = tokens.exact(tokens.logps.double(), weights="given", given=given.double())
    torch.testing.assert_close(result.losses.double(), losses, rtol=3e-6, atol=1e-6)
    torch.testing.assert_close(result.weights, given)


def test_sums_carry_gradients_of_their_own():
    tokens = Tokens(2, 3, torch.float32)
    result = tokens.run()
    (got,) = torch.autograd.grad(result.losses.sum() + 0.1 * result.sums[..., 0].sum(), tokens.logps)
    logps = tokens.logps.detach().double().requires_grad_()
    losses, _ = tokens.exact(logps)
    chosen = sum(
        logps[start:stop].sum()
        for start, stop in zip(tokens.starts[..., 0].flatten(), tokens.stops[..., 0].flatten(), strict=True)
    )
    (exact,) = torch.autograd.grad(losses.sum() + 0.1 * chosen, logps)
    torch.testing.assert_close(got.double(), exact, rtol=1e-4, atol=1e-6)


def test_long_segments():
    tokens = Tokens(1, 2, torch.float32, longest=3000)
    losses, _ = tokens.exact(tokens.logps.double())
    torch.testing.assert_close(tokens.run().losses.double(), losses, rtol=3e-6, atol=1e-6)


@pytest.mark.skipif(TRITON, reason="opcheck traces the operator, whichever backend runs it")
def test_opcheck():
    tokens = Tokens(2, 3, torch.float32)
    arguments = (tokens.starts, tokens.stops, "gaussian", None, tokens.ids, 7, torch.tensor(5), 0.8, 0.3, "union")
    torch.library.opcheck(_mobt_op, (tokens.logps, *arguments))


def test_unknown_weights_are_named():
    with pytest.raises(ValueError, match="weights must be one of gaussian, mean, uniform, given, got 'fixed'"):
        Tokens(1, 1, torch.float32).run(weights="fixed")
