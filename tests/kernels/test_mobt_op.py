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

    def exact(self, logps, *, weights="gaussian", beta=0.8, gamma=0.3, pooled="union", given=None, present=None):
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
            there = [True] * self.shape[1] if present is None else present[b].tolist()
            if weights == "given":
                alpha = given[b] * torch.tensor(there)
            else:
                alpha = reference.present_softmax(scores[weights].detach(), there)
            alphas.append(alpha)
            losses.append(reference.amopo_sample_loss(*sides, alpha, beta=beta, gamma=gamma, present=there))
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


def some_present(samples: int, objectives: int) -> torch.Tensor:
    """Which objectives count: about half of them, all of the first sample's, one of the last's."""
    present = torch.rand(samples, objectives) < 0.5
    present[0] = True
    present[-1] = False
    present[:, torch.randint(objectives, ())] = True
    return present


@pytest.mark.parametrize("dtype, tol", DTYPES, ids=str)
@pytest.mark.parametrize("objectives", [1, 3, 8, 33])
@pytest.mark.parametrize(
    "weights, pooled", [("gaussian", "union"), ("mean", "sum"), ("uniform", "union"), ("given", "union")]
)
def test_absent_objectives_have_no_weight_no_loss_and_no_gradient(dtype, tol, objectives, weights, pooled):
    tokens, present = Tokens(4, objectives, dtype), some_present(4, objectives)
    given = torch.rand(4, objectives).to(dtype) if weights == "given" else None
    result = tokens.run(weights=weights, pooled=pooled, given=given, present=present)
    logps = tokens.logps.detach().double().requires_grad_()
    exact_given = None if given is None else given.double()
    losses, alphas = tokens.exact(logps, weights=weights, pooled=pooled, given=exact_given, present=present)
    torch.testing.assert_close(result.losses.double(), losses, rtol=tol, atol=tol)
    torch.testing.assert_close(result.weights.double(), alphas, rtol=tol, atol=tol)
    assert (result.weights[~present] == 0).all() and (result.coefficients[~present] == 0).all()
    upstream = torch.tensor([2.0, -0.7, 1.0, 0.3], dtype=torch.float64)
    (exact,) = torch.autograd.grad(losses, logps, upstream)
    (got,) = torch.autograd.grad(result.losses, tokens.logps, upstream.to(dtype))
    torch.testing.assert_close(got.double(), exact, rtol=20 * tol, atol=tol)
    for sample in range(4):
        cuts = [
            [logps[tokens.starts[sample, k, s] : tokens.stops[sample, k, s]] for k in range(objectives)] for s in (0, 1)
        ]
        alpha = result.weights[sample].detach().double()
        logged = reference.logged_values(*cuts, alpha, beta=0.8, pooled=pooled)
        torch.testing.assert_close(result.logged[sample].double(), logged, rtol=10 * tol, atol=10 * tol)


@pytest.mark.parametrize("dtype, tol", DTYPES, ids=str)
@pytest.mark.parametrize("weights", ["gaussian", "mean", "uniform", "given"])
def test_what_an_absent_objective_holds_does_not_matter(dtype, tol, weights):
    tokens, present = Tokens(2, 3, dtype), torch.tensor([[True, False, True], [False, True, True]])
    given = torch.rand(2, 3).to(dtype) if weights == "given" else None
    clean = tokens.run(weights=weights, given=given, present=present)
    broken = tokens.logps.detach().clone()
    for start, stop in zip(tokens.starts[~present].flatten(), tokens.stops[~present].flatten(), strict=True):
        broken[start:stop] = -torch.inf
    tokens.logps = broken.requires_grad_()
    result = tokens.run(weights=weights, given=given, present=present)
    torch.testing.assert_close(result.losses, clean.losses, rtol=tol, atol=0.0)
    torch.testing.assert_close(result.weights, clean.weights, rtol=tol, atol=0.0)
    (gradient,) = torch.autograd.grad(result.losses.sum(), tokens.logps)
    assert torch.isfinite(gradient).all() and (gradient[broken == -torch.inf] == 0).all()


def test_all_present_is_the_same_as_no_mask():
    tokens = Tokens(2, 3, torch.float32)
    masked, plain = tokens.run(present=torch.ones(2, 3, dtype=torch.bool)), tokens.run()
    for one, other in zip(masked, plain, strict=True):
        torch.testing.assert_close(one, other, rtol=0.0, atol=0.0)


def test_a_sample_whose_weighted_objectives_are_absent_adds_nothing():
    tokens = Tokens(2, 2, torch.float32)
    given, present = torch.tensor([[1.0, 0.0], [0.5, 0.5]]), torch.tensor([[False, True], [True, True]])
    result = tokens.run(weights="given", given=given, present=present)
    assert result.losses[0] == 0 and (result.logged[0, -1] == 0).all()
    assert result.losses[1] > 0 and torch.isfinite(result.logged).all()


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
    present = torch.tensor([[True, False, True], [True, True, True]])
    torch.library.opcheck(_mobt_op, (tokens.logps, *arguments, present))


def test_unknown_weights_are_named():
    with pytest.raises(ValueError, match="weights must be one of gaussian, mean, uniform, given, got 'fixed'"):
        Tokens(1, 1, torch.float32).run(weights="fixed")
