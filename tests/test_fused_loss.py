"""The drop-in loss against a naive fp64 computation that shares no code with it.

Batches are fp64, which always runs on the eager operations; where Triton's are asked for they are fp32. The truth is
fp64 either way.
"""

from __future__ import annotations

import copy
import os
import zlib

import pytest
import torch

import amopo
from amopo.weights import WeightStats
from amopo_kernels import reference

VOCAB, HIDDEN, LENGTH = 53, 12, 14
TRITON = os.environ.get("AMOPO_BACKEND") == "triton"
DTYPE = torch.float32 if TRITON else torch.float64
# fp32: a dozen roundings of numbers around 1, sums of up to 13 log-probs among them.
TOLERANCE = {torch.float32: 3e-6, torch.float64: 1e-12}
DTYPES = [torch.float32] if TRITON else [torch.float64, torch.float32]


@pytest.fixture(autouse=True)
def fresh_seed(request):
    torch.manual_seed(zlib.crc32(request.node.nodeid.encode()))


def assert_exact(value: torch.Tensor, truth: torch.Tensor, factor: float = 1.0, name: str | None = None) -> None:
    """Equal to `factor` times the tolerance of the value's dtype."""
    tol = factor * TOLERANCE[value.dtype]
    torch.testing.assert_close(value.double(), truth.double(), rtol=tol, atol=tol, msg=name)


class Batch:
    """A padded batch `[2BK, L]` in sample-major order, prompts of unequal length, responses of unequal length."""

    def __init__(self, samples=3, objectives=4, dtype=DTYPE):
        self.samples, self.objectives = samples, objectives
        rows = 2 * samples * objectives
        self.hidden = torch.randn(rows, LENGTH, HIDDEN).to(dtype).requires_grad_()
        self.head = torch.nn.Linear(HIDDEN, VOCAB, bias=False).to(dtype)
        self.labels = torch.randint(0, VOCAB, (rows, LENGTH))
        for row in range(rows):
            start = int(torch.randint(1, 5, ()))
            stop = int(torch.randint(start + 1, LENGTH + 1, ()))
            self.labels[row, :start] = -100
            self.labels[row, stop:] = -100
        self.labels[0] = -100  # a one-token response
        self.labels[0, 6] = 7
        self.ids = torch.tensor([11, 2**40, 5, 17, 23][:samples])
        self.transform = lambda logits: logits

    def exact_leaves(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Hidden states and weight as fp64 leaves."""
        return tuple(leaf.detach().double().requires_grad_() for leaf in (self.hidden, self.head.weight))

    def rows_in(self, order: str) -> torch.Tensor:
        """Permutation from sample-major rows to `order`."""
        b, k = self.samples, self.objectives
        where = torch.arange(2 * b * k).view(b, k, 2)
        if order == "objective_major":
            return torch.cat([torch.cat([where[:, j, 0], where[:, j, 1]]) for j in range(k)])
        if order == "chosen_first":
            return torch.cat([where[:, :, 0].flatten(), where[:, :, 1].flatten()])
        return where.flatten()

    def token_logps(self, hidden=None, weight=None) -> list[torch.Tensor]:
        """Per row: naive fp64 log-probs of its response tokens."""
        hidden = self.hidden.double() if hidden is None else hidden
        weight = self.head.weight.double() if weight is None else weight
        logps = torch.log_softmax(self.transform(hidden[:, :-1] @ weight.T), -1)
        labels = self.labels[:, 1:]
        return [logps[r][labels[r] >= 0, labels[r][labels[r] >= 0]] for r in range(len(labels))]

    def sides(self, logps, sample):
        rows = [logps[2 * self.objectives * sample + i] for i in range(2 * self.objectives)]
        return rows[0::2], rows[1::2]

    def naive_loss(self, *, beta=0.8, gamma=0.0, pooled="union", alpha=None, seed=0, step=3, hidden=None, weight=None):
        logps = self.token_logps(hidden, weight)
        losses, alphas = [], []
        for b in range(self.samples):
            chosen, rejected = self.sides(logps, b)
            if alpha is None:
                mu, sigma = reference.weight_distribution(chosen, rejected, pooled=pooled)
                noise = [reference.gaussian_noise(seed, step, int(self.ids[b]), k)[0] for k in range(self.objectives)]
                weights = torch.softmax(mu + sigma * torch.tensor(noise, dtype=mu.dtype), 0)
            else:
                weights = alpha
            alphas.append(weights)
            losses.append(reference.amopo_sample_loss(chosen, rejected, weights, beta=beta, gamma=gamma))
        return torch.stack(losses), torch.stack(alphas)


def call(batch, **options):
    options = {
        "num_objectives": batch.objectives,
        "order": "sample_major",
        "sample_ids": batch.ids,
        "step": 3,
        **options,
    }
    return amopo.fused_loss(batch.hidden, batch.head, batch.labels, **options)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("pooled", ["union", "sum"])
@pytest.mark.parametrize("budget", [None, 20_000])
def test_loss_weights_and_gradients_match_the_naive_computation(dtype, pooled, budget):
    batch = Batch(dtype=dtype)
    result = call(batch, pooled=pooled, beta=1.3, gamma=0.4, seed=99, budget=budget)
    hidden, weight = batch.exact_leaves()
    losses, alphas = batch.naive_loss(pooled=pooled, beta=1.3, gamma=0.4, seed=99, hidden=hidden, weight=weight)
    exact = torch.autograd.grad(losses.mean(), (hidden, weight))
    got = torch.autograd.grad(result.loss, (batch.hidden, batch.head.weight))
    assert result.loss.dtype == dtype
    assert_exact(result.loss, losses.mean())
    assert_exact(result.loss_sum, losses.sum())
    assert_exact(result.weights, alphas)
    assert result.num_samples == 3
    for value, truth in zip(got, exact, strict=True):
        tol = TOLERANCE[dtype]
        torch.testing.assert_close(value.double(), truth, rtol=20 * tol, atol=tol)


@pytest.mark.parametrize("budget", [None, 20_000])
def test_softcap_and_scale_of_the_logits(budget):
    batch = Batch()
    result = call(batch, softcap=2.0, logit_scale=1.5, budget=budget)
    batch.transform = lambda logits: 2.0 * torch.tanh(1.5 * logits / 2.0)
    hidden, weight = batch.exact_leaves()
    losses, alphas = batch.naive_loss(hidden=hidden, weight=weight)
    assert_exact(result.loss, losses.mean())
    assert_exact(result.weights, alphas)
    got = torch.autograd.grad(result.loss, (batch.hidden, batch.head.weight))
    for value, truth in zip(got, torch.autograd.grad(losses.mean(), (hidden, weight)), strict=True):
        torch.testing.assert_close(value.double(), truth, rtol=20 * TOLERANCE[DTYPE], atol=TOLERANCE[DTYPE])


def test_bf16_loss_is_as_good_as_plain_bf16():
    batch = Batch(dtype=torch.bfloat16)
    losses, _ = batch.naive_loss()
    result = call(batch)
    plain_logps = [
        reference.linear_logprobs(
            batch.hidden[r, :-1][batch.labels[r, 1:] >= 0],
            batch.head.weight,
            batch.labels[r, 1:][batch.labels[r, 1:] >= 0],
        ).float()
        for r in range(len(batch.labels))
    ]
    sums = torch.stack([t.sum() for t in plain_logps]).double()
    exact_sums = torch.stack([t.sum() for t in batch.token_logps()])
    plain_error = (sums - exact_sums).abs().max()
    assert (result.sum_logps.flatten().double() - exact_sums).abs().max() <= 1.5 * plain_error
    assert abs(float(result.loss) - float(losses.mean())) < 5e-3
    assert result.loss.dtype == torch.float32


@pytest.mark.parametrize("order", ["objective_major", "sample_major", "chosen_first"])
def test_every_row_order_is_the_same_batch(order):
    batch = Batch()
    expected = call(batch)
    rows = batch.rows_in(order)
    result = amopo.fused_loss(
        batch.hidden[rows],
        batch.head,
        batch.labels[rows],
        num_objectives=4,
        order=order,
        sample_ids=batch.ids,
        step=3,
    )
    torch.testing.assert_close(result.sum_logps, expected.sum_logps)
    torch.testing.assert_close(result.loss, expected.loss)


def test_row_ids_override_the_order():
    batch = Batch()
    rows = torch.randperm(24)
    where = torch.empty(24, dtype=torch.int64)
    where[rows] = torch.arange(24)
    result = amopo.fused_loss(
        batch.hidden[rows],
        batch.head,
        batch.labels[rows],
        num_objectives=4,
        row_ids=where.view(3, 4, 2),
        sample_ids=batch.ids,
        step=3,
    )
    torch.testing.assert_close(result.loss, call(batch).loss)


def test_shifted_labels_and_layout_give_the_same_loss():
    batch = Batch()
    expected = call(batch)
    shifted = torch.full_like(batch.labels, -100)
    shifted[:, :-1] = batch.labels[:, 1:]
    options = {"sample_ids": batch.ids, "step": 3}
    result = amopo.fused_loss(
        batch.hidden, batch.head, shift_labels=shifted, num_objectives=4, order="sample_major", **options
    )
    torch.testing.assert_close(result.loss, expected.loss)

    index = (shifted >= 0).flatten().nonzero()[:, 0]
    lengths = (shifted >= 0).sum(1)
    offsets = torch.cat([torch.zeros(1, dtype=torch.int64), lengths.cumsum(0)])
    layout = amopo.TreeLayout(
        num_samples=3, num_objectives=4, row_index=index, row_target=shifted.flatten()[index], fan_out=None,
        offsets=offsets, max_target=VOCAB - 1, num_tokens=24 * LENGTH,
    )  # fmt: skip
    flat = batch.hidden.reshape(-1, HIDDEN)
    result = amopo.fused_loss(flat, batch.head, layout=layout, **options)
    torch.testing.assert_close(result.loss, expected.loss)
    torch.testing.assert_close(result.sum_logps, expected.sum_logps)
    logps = amopo.linear_logprobs(flat[index], batch.head.weight, layout.row_target)
    torch.testing.assert_close(amopo.loss_from_logps(logps, layout, **options).loss, expected.loss)


def test_weight_tensor_instead_of_module():
    batch = Batch()
    result = amopo.fused_loss(
        batch.hidden,
        batch.head.weight,
        batch.labels,
        num_objectives=4,
        order="sample_major",
        sample_ids=batch.ids,
        step=3,
    )
    torch.testing.assert_close(result.loss, call(batch).loss)


@pytest.mark.parametrize("name", ["mean", "uniform"])
def test_other_sources_of_weights(name):
    batch = Batch()
    result = call(batch, weights=name)
    logps = batch.token_logps()
    for b in range(3):
        mu, _ = reference.weight_distribution(*batch.sides(logps, b), pooled="union")
        exact = torch.softmax(mu, 0) if name == "mean" else torch.full((4,), 0.25, dtype=torch.float64)
        assert_exact(result.weights[b], exact)


def test_fixed_weights_and_functions_of_the_statistics():
    batch = Batch()
    fixed = torch.tensor([1.0, 2.0, 0.0, 1.0])
    losses, _ = batch.naive_loss(alpha=fixed.double() / 4.0)
    assert_exact(call(batch, weights=fixed).loss, losses.mean())
    assert_exact(call(batch, weights=fixed.expand(3, 4)).loss, losses.mean())
    assert_exact(call(batch, weights=lambda stats: fixed.expand_as(stats.mean)).loss, losses.mean())
    seen = []
    call(batch, weights=lambda stats: seen.append(stats) or torch.ones_like(stats.mean))
    assert isinstance(seen[0], WeightStats) and seen[0].sequences.length.shape == (3, 4, 2)


def test_simpo_with_one_objective_is_amopo_with_one_objective():
    batch = Batch(objectives=1)
    a, b = call(batch, objective="simpo", gamma=1.0), call(batch, gamma=1.0)
    torch.testing.assert_close(a.loss, b.loss)
    assert torch.equal(b.weights, torch.ones(3, 1, dtype=DTYPE))


def test_official_preset_equals_the_released_arithmetic_given_its_noise():
    batch = Batch()
    result = call(batch, preset="official", seed=7)
    hidden, weight = batch.exact_leaves()
    logps = batch.token_logps(hidden, weight)
    # the released code has no answer for one token (its deviation is NaN): twice the token has ours, zero
    logps = [t if len(t) > 1 else t.expand(2) for t in logps]
    chosen = [[batch.sides(logps, b)[0][k] for b in range(3)] for k in range(4)]
    rejected = [[batch.sides(logps, b)[1][k] for b in range(3)] for k in range(4)]
    noise = torch.tensor(
        [[reference.gaussian_noise(7, 3, int(i), k) for i in batch.ids] for k in range(4)], dtype=torch.float64
    )
    exact, weights = reference.official_loss(chosen, rejected, noise, beta=0.8, gamma=2.0)
    assert_exact(result.loss, exact)
    assert_exact(result.weights, weights.T)
    assert float(result.weights.sum()) == pytest.approx(1.0)
    got = torch.autograd.grad(result.loss, (batch.hidden, batch.head.weight))
    for value, truth in zip(got, torch.autograd.grad(exact, (hidden, weight)), strict=True):
        tol = TOLERANCE[DTYPE]
        torch.testing.assert_close(value.double(), truth, rtol=1000 * tol, atol=0.01 * tol)


def test_normalizer_makes_micro_batches_add_up():
    batch = Batch()
    whole = call(batch)
    parts = 0.0
    for part in (slice(0, 8), slice(8, 24)):
        samples = slice(part.start // 8, part.stop // 8)
        result = amopo.fused_loss(
            batch.hidden[part],
            batch.head,
            batch.labels[part],
            num_objectives=4,
            order="sample_major",
            sample_ids=batch.ids[samples],
            step=3,
            normalizer=3,
        )
        parts = parts + result.loss
    torch.testing.assert_close(parts, whole.loss)


def test_noise_follows_torchs_seed_unless_a_step_is_given():
    batch = Batch(samples=2, objectives=2)
    losses = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        losses.append(call(batch, step=None).weights)
    assert torch.equal(losses[0], losses[1]) and not torch.equal(losses[0], losses[2])
    assert not torch.equal(call(batch, step=None).weights, call(batch, step=None).weights)  # never frozen
    assert torch.equal(call(batch, step=4).weights, call(batch, step=4).weights)


def test_metrics_are_what_their_names_say():
    batch = Batch()
    result = call(batch, beta=2.0)
    logps = batch.token_logps()
    rewards = torch.stack([2.0 * t.mean() for t in logps]).view(3, 4, 2)
    margins = rewards[..., 0] - rewards[..., 1]
    expected = {
        "rewards/chosen": rewards[..., 0].mean(0),
        "rewards/rejected": rewards[..., 1].mean(0),
        "rewards/margins": margins.mean(0),
        "rewards/accuracies": (margins > 0).double().mean(0),
        "logps/chosen": torch.stack([t.sum() for t in logps]).view(3, 4, 2)[..., 0].mean(0),
        "amopo/alpha": result.weights.mean(0),
        "amopo/alpha_entropy": -(result.weights * result.weights.log()).sum(-1).mean(),
    }
    for name, value in expected.items():
        assert_exact(result.metrics[name], value, factor=4.0, name=name)
    assert not any(value.requires_grad for value in result.metrics.values())


def test_finite_differences_of_the_whole_loss_through_a_tiny_model():
    torch.manual_seed(0)
    embed = torch.nn.Embedding(VOCAB, HIDDEN).double()
    mix = torch.nn.Linear(HIDDEN, HIDDEN).double()
    head = torch.nn.Linear(HIDDEN, VOCAB, bias=True).double()
    model = torch.nn.ModuleList([embed, mix, head])
    tokens = torch.randint(0, VOCAB, (8, 9))
    labels = tokens.clone()
    labels[:, :4] = -100

    def loss(model):
        embed, mix, head = model
        hidden = torch.tanh(mix(embed(tokens).cumsum(1)))
        options = {"num_objectives": 2, "weights": "uniform", "step": 0, "budget": 12_000, "softcap": 6.0}
        return amopo.fused_loss(hidden, head, labels, **options).loss

    # the differences need fp64; the gradient comes from the dtype under test
    judged = copy.deepcopy(model).to(DTYPE)
    gradients = torch.autograd.grad(loss(judged), list(judged.parameters()))
    relative = 1e-6 if DTYPE == torch.float64 else 1e-4
    for parameter, gradient in zip(model.parameters(), gradients, strict=True):
        direction = torch.randn_like(parameter)
        epsilon = 1e-6
        with torch.no_grad():
            parameter += epsilon * direction
            above = loss(model)
            parameter -= 2 * epsilon * direction
            below = loss(model)
            parameter += epsilon * direction
        numeric = float((above - below) / (2 * epsilon))
        expected = pytest.approx(
            float((gradient * direction).sum()), rel=relative, abs=1e-9 if relative < 1e-5 else 1e-6
        )
        assert numeric == expected
