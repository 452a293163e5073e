"""Signs per objective: who is preferred, who is absent, in the loss, its gradient and its metrics.

The truth is the specification on token lists, in fp64, which knows neither index pairs nor masks.
"""

from __future__ import annotations

import os
import random

import pytest
import torch

import amopo
from amopo.fused_loss import loss_from_logps
from amopo.packing import TokenizedSample, pack, samples_of
from amopo_kernels import reference

TRITON = os.environ.get("AMOPO_BACKEND") == "triton"
DTYPE = torch.float32 if TRITON else torch.float64
TOL = 3e-6 if TRITON else 1e-12
VOCAB, HIDDEN, K = 31, 8, 3
SIGNS = [(1, -1, 0), (-1, -1, -1), (1, 1, 1), (0, 0, -1)]
BETA, GAMMA = 1.3, 0.2


def make_samples(signs=SIGNS) -> list[TokenizedSample]:
    rng = random.Random(3)

    def tokens(longest):
        return [rng.randrange(1, VOCAB) for _ in range(rng.randint(1, longest))]

    return [
        TokenizedSample([tokens(4) for _ in range(K)], [*tokens(6), 1], [*tokens(6), 2], number, signs)
        for number, signs in enumerate(signs)
    ]


class Case:
    """Samples with signs, the log-probs of their packed rows."""

    def __init__(self, signs=SIGNS, sharing="none"):
        torch.manual_seed(0)
        self.signs = signs
        self.batch = pack(make_samples(signs), sharing=sharing)
        self.layout = self.batch.layout
        rows = self.layout.row_index.shape[0]
        self.logps = (-torch.rand(rows, dtype=torch.float64) * 3).to(DTYPE).requires_grad_()

    def run(self, **options):
        options = {"beta": BETA, "gamma": GAMMA, "seed": 5, "step": 9, "sample_ids": self.batch.sample_ids} | options
        return loss_from_logps(self.logps, self.layout, **options)

    def sides(self, logps):
        """Per sample: log-probs of the better and of the worse response, for each objective."""
        tokens = logps if self.layout.fan_out is None else logps[self.layout.fan_out]
        cuts = [tokens[a:b] for a, b in zip(self.layout.offsets[:-1], self.layout.offsets[1:], strict=True)]
        for number, signs in enumerate(self.signs):
            mine = cuts[number * 2 * K : (number + 1) * 2 * K]
            yield reference.orient(mine[0::2], mine[1::2], signs)

    def exact(self, logps, *, weights="gaussian", pooled="union"):
        """losses `[B]`, weights `[B, K]` and what is logged `[B, 10, K]`."""
        losses, alphas, logged = [], [], []
        for number, (better, worse) in enumerate(self.sides(logps)):
            present = [sign != 0 for sign in self.signs[number]]
            mu, sigma = reference.weight_distribution(better, worse, pooled=pooled)
            noise = [reference.gaussian_noise(5, 9, number, k)[0] for k in range(K)]
            if isinstance(weights, torch.Tensor):
                kept = weights.double() * torch.tensor(present)
                alpha = kept / kept.sum()
            else:
                scores = {
                    "gaussian": mu + sigma * torch.tensor(noise, dtype=torch.float64),
                    "mean": mu,
                    "uniform": 0 * mu,
                }[weights]
                alpha = reference.present_softmax(scores.detach(), present)
            alphas.append(alpha)
            losses.append(reference.amopo_sample_loss(better, worse, alpha, beta=BETA, gamma=GAMMA, present=present))
            logged.append(reference.logged_values(better, worse, alpha, beta=BETA, pooled=pooled))
        return torch.stack(losses), torch.stack(alphas), torch.stack(logged)


SOURCES = {
    "gaussian": {},
    "mean": {"weights": "mean", "pooled": "sum"},
    "uniform": {"weights": "uniform"},
    "fixed": {"weights": torch.tensor([0.2, 0.5, 0.3])},
}


@pytest.mark.parametrize("sharing", ["none", "pair"])
@pytest.mark.parametrize("source", SOURCES)
def test_loss_weights_and_gradient_are_those_of_the_objectives_present(source, sharing):
    case, options = Case(sharing=sharing), SOURCES[source]
    result = case.run(**options)
    logps = case.logps.detach().double().requires_grad_()
    losses, alphas, _ = case.exact(logps, **options)
    torch.testing.assert_close(result.weights.double(), alphas, rtol=TOL, atol=TOL)
    torch.testing.assert_close(result.loss.double(), losses.mean(), rtol=TOL, atol=TOL)
    (got,) = torch.autograd.grad(result.loss, case.logps)
    (exact,) = torch.autograd.grad(losses.mean(), logps)
    torch.testing.assert_close(got.double(), exact, rtol=20 * TOL, atol=TOL)


@pytest.mark.parametrize("source", SOURCES)
def test_the_composed_way_gives_the_same(source):
    """A function as the source of weights takes the way through per-sequence statistics."""
    case, options = Case(), SOURCES[source]
    name = options.get("weights", "gaussian")
    own = (lambda stats: name) if isinstance(name, torch.Tensor) else (lambda stats: amopo.weights.get(name)(stats))
    fused, composed = case.run(**options), case.run(**options | {"weights": own})
    torch.testing.assert_close(composed.weights, fused.weights, rtol=TOL, atol=TOL)
    torch.testing.assert_close(composed.loss, fused.loss, rtol=TOL, atol=TOL)
    gradients = [torch.autograd.grad(result.loss, case.logps)[0] for result in (composed, fused)]
    torch.testing.assert_close(*gradients, rtol=20 * TOL, atol=TOL)


def test_simpo_averages_over_the_objectives_present():
    case = Case()
    result = case.run(objective="simpo")
    losses, _, _ = case.exact(case.logps.detach().double(), weights="uniform")
    torch.testing.assert_close(result.loss.double(), losses.mean(), rtol=TOL, atol=TOL)


def test_metrics_are_means_over_the_samples_where_the_objective_is_present():
    case = Case()
    metrics = case.run(weights="mean").metrics
    _, _, logged = case.exact(case.logps.detach().double(), weights="mean")
    present = torch.tensor(case.signs) != 0
    for name, row in (
        ("rewards/chosen", 0), ("rewards/rejected", 1), ("rewards/margins", 2), ("rewards/accuracies", 3),
        ("logps/chosen", 4), ("amopo/alpha", 6), ("amopo/mu", 7), ("amopo/sigma", 8),
    ):  # fmt: skip
        for k in range(K):
            expected = logged[present[:, k], row, k].mean()
            torch.testing.assert_close(metrics[name][k].double(), expected, rtol=10 * TOL, atol=TOL, msg=name)
    spread = torch.stack([logged[present[:, k], 6, k].std(correction=0) for k in range(K)])
    torch.testing.assert_close(metrics["amopo/alpha_std"].double(), spread, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(metrics["amopo/alpha_entropy"].double(), logged[:, 9, 0].mean(), rtol=10 * TOL, atol=TOL)


def test_an_objective_that_no_sample_has_is_nan_and_nothing_else_is():
    metrics = Case(signs=[(1, 0, -1), (-1, 0, 1)]).run().metrics
    for name, values in metrics.items():
        if name == "amopo/alpha_entropy":
            assert torch.isfinite(values)
        else:
            assert torch.isfinite(values).tolist() == [True, False, True], name


def test_swapping_responses_is_the_sign_minus_one():
    case, plain = Case(signs=[(-1, -1, -1)] * 4), Case(signs=[None] * 4)
    swapped = make_samples([None] * 4)
    swapped = pack([TokenizedSample(s.prompts, s.rejected, s.chosen, s.id) for s in swapped], sharing="none")
    # the log-probs of each sample's sequences, in the order chosen, rejected
    offsets = plain.layout.offsets
    pieces = [plain.logps.detach()[a:b] for a, b in zip(offsets[:-1], offsets[1:], strict=True)]
    turned = torch.cat([pieces[i ^ 1] for i in range(len(pieces))])
    options = {"beta": BETA, "gamma": GAMMA, "seed": 5, "step": 9, "sample_ids": swapped.sample_ids}
    expected = loss_from_logps(turned, swapped.layout, **options)
    torch.testing.assert_close(case.run().loss, expected.loss, rtol=TOL, atol=TOL)


def test_a_tie_leaves_the_sample_that_the_others_make():
    """Two objectives and a tie are the two objectives: loss, weights and noise."""
    rng = torch.Generator().manual_seed(1)
    base = make_samples([None])[0]
    three = TokenizedSample(base.prompts, base.chosen, base.rejected, 7, (1, -1, 0))
    two = TokenizedSample(base.prompts[:2], base.chosen, base.rejected, 7, (1, -1))
    results = []
    logps = (-torch.rand(3 * (len(base.chosen) + len(base.rejected)), generator=rng, dtype=torch.float64)).to(DTYPE)
    for sample in (three, two):
        batch = pack([sample], sharing="none")
        part = logps[: batch.layout.row_index.shape[0]]
        results.append(loss_from_logps(part, batch.layout, sample_ids=batch.sample_ids, seed=1, step=2))
    torch.testing.assert_close(results[0].loss, results[1].loss, rtol=TOL, atol=0.0)
    torch.testing.assert_close(results[0].weights[:, :2], results[1].weights, rtol=TOL, atol=0.0)


@pytest.mark.parametrize("order", ["sample_major", "objective_major", "chosen_first"])
def test_padded_rows_with_signs_equal_the_packed_samples(order):
    samples = make_samples()
    torch.manual_seed(2)
    table, head = torch.randn(VOCAB, HIDDEN).to(DTYPE), torch.nn.Linear(HIDDEN, VOCAB, bias=False).to(DTYPE)
    batch = pack(samples, sharing="none")
    options = {"beta": BETA, "sample_ids": batch.sample_ids, "seed": 1, "step": 3}
    packed = amopo.fused_loss(table[batch.input_ids[0]].requires_grad_(), head, layout=batch.layout, **options)

    sequence = amopo.padded.sequence_rows(2 * K * len(samples), K, order, None)
    ids = torch.zeros(2 * K * len(samples), 12, dtype=torch.int64)
    labels = torch.full_like(ids, -100)
    for b, sample in enumerate(samples):
        for k, prompt in enumerate(sample.prompts):
            for side, response in enumerate((sample.chosen, sample.rejected)):
                row, tokens = sequence[b, k, side], torch.tensor(prompt + response)
                ids[row, : len(tokens)] = tokens
                labels[row, len(prompt) : len(tokens)] = tokens[len(prompt) :]
    hidden = table[ids].requires_grad_()
    signs = torch.tensor(SIGNS)
    padded = amopo.fused_loss(hidden, head, labels, num_objectives=K, order=order, signs=signs, **options)
    torch.testing.assert_close(padded.loss, packed.loss, rtol=TOL, atol=TOL)
    torch.testing.assert_close(padded.weights, packed.weights, rtol=TOL, atol=TOL)
    torch.testing.assert_close(padded.sum_logps, packed.sum_logps, rtol=TOL, atol=TOL)
    assert torch.equal(padded.present, signs != 0)
    padded.loss.backward()
    absent = sequence[signs == 0].flatten()
    assert (hidden.grad[absent] == 0).all() and hidden.grad.abs().sum() > 0
    other = amopo.fused_loss(hidden, head, labels, num_objectives=K, order=order, signs=signs.to(torch.int8), **options)
    assert torch.equal(other.loss, padded.loss)


def padded_call(**options):
    labels = torch.tensor([[-100, 1, 2]] * (2 * K))
    return amopo.fused_loss(
        torch.randn(2 * K, 3, HIDDEN), torch.randn(VOCAB, HIDDEN), labels, num_objectives=K, **options
    )


@pytest.mark.parametrize(
    "signs, error, message",
    [
        (torch.tensor([[1, 2, 0]]), ValueError, r"signs must be \+1, -1 or 0, got 2"),
        (torch.tensor([[0, 0, 0]]), ValueError, "sample 0: all signs are 0"),
        (torch.tensor([[1, 1]]), ValueError, r"signs must be \[B, K\] = \(1, 3\), got \(1, 2\)"),
        (torch.tensor([[1.0, -1.0, 1.0]]), TypeError, "signs must be an integer tensor"),
        (torch.tensor([[True, False, True]]), TypeError, "signs must be an integer tensor"),
        ([[1, 1, 1]], TypeError, "signs must be an integer tensor"),
    ],
)
def test_signs_that_cannot_be_right_are_named(signs, error, message):
    with pytest.raises(error, match=message):
        padded_call(signs=signs)


def test_the_official_preset_refuses_signs():
    message = "preset='official' knows one winner for all objectives"
    with pytest.raises(ValueError, match=message):
        padded_call(signs=torch.tensor([[1, -1, 1]]), preset="official")
    for signs in ([(1, -1, 1)], [(1, 0, 1)]):
        case = Case(signs=signs)
        with pytest.raises(ValueError, match=message):
            case.run(preset="official", gamma=2.0)


def test_a_reference_in_the_order_of_responses_refuses_signs():
    from amopo.objectives.dpo import dpo

    assert torch.isfinite(Case(signs=[(1, 1, 1)]).run(objective=dpo(torch.zeros(1, 3, 2))).loss)
    for signs in ((1, -1, 1), (1, 0, 1)):
        with pytest.raises(ValueError, match="holds numbers of the chosen and rejected responses"):
            Case(signs=[signs]).run(objective=dpo(torch.zeros(1, 3, 2)))


def test_signs_beside_a_layout_are_refused():
    case = Case()
    with pytest.raises(ValueError, match="signs come with the layout"):
        amopo.fused_loss(
            torch.randn(200, HIDDEN), torch.randn(VOCAB, HIDDEN), layout=case.layout, signs=torch.tensor(SIGNS)
        )


def test_an_objective_that_does_not_know_absent_ones_is_refused_for_ties_alone():
    def hinge(sum_logps, lengths, weights, *, beta, gamma):
        average = sum_logps / lengths
        return (weights * (1 - beta * (average[..., 0] - average[..., 1])).clamp(min=0)).sum(-1)

    with pytest.raises(ValueError, match="the objective hinge does not know objectives that are absent"):
        Case().run(objective=hinge)
    assert torch.isfinite(Case(signs=[(1, -1, 1)]).run(objective=hinge).loss)


def test_packing_keeps_signs_and_gives_them_back():
    samples = make_samples()
    for sharing in ("none", "pair", "tree"):
        assert [s.signs for s in samples_of(pack(samples, sharing=sharing))] == [s.signs for s in samples]
    plain = pack(make_samples([None, (1, 1, 1)])).layout
    assert plain.preferred is None and plain.present is None
    ties = pack(make_samples([None, (1, 0, 1)])).layout
    assert ties.preferred is None and ties.present.tolist() == [[True] * 3, [True, False, True]]
