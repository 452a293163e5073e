"""Statistics, objective and schemas of the registered operations, eager and C++ alike, against the specification."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from amopo_kernels import cpp, reference
from amopo_kernels.mobt_op import Mobt
from amopo_kernels.operations import EAGER
from amopo_kernels.philox import gaussian_noise

BUILT, REASON = cpp.available()
needs_cpp = pytest.mark.skipif(not BUILT, reason=REASON)
EITHER = [pytest.param("eager", id="eager"), pytest.param("cpp", marks=needs_cpp)]


def operation(kind: str, name: str):
    return EAGER[name] if kind == "eager" else getattr(torch.ops.amopo, name)


def batch(samples: int, objectives: int, longest: int = 40) -> tuple[Tensor, Tensor]:
    """Log-probs of unequal sequences, one-token ones among them, and their offsets."""
    lengths = torch.randint(1, longest, (samples * objectives * 2,))
    lengths[0] = 1
    offsets = torch.cat([torch.zeros(1, dtype=torch.int64), lengths.cumsum(0)])
    return -torch.rand(int(offsets[-1])).mul(4), offsets


def edges_of(offsets: Tensor, objectives: int) -> tuple[Tensor, Tensor]:
    """starts and stops [B, K, 2] of sequences that stand in order."""
    return tuple(edge.reshape(-1, objectives, 2).contiguous() for edge in (offsets[:-1], offsets[1:]))


def tokens(logps: Tensor, offsets: Tensor, objectives: int, sample: int) -> tuple[list[Tensor], list[Tensor]]:
    """Chosen and rejected token log-probs of a sample, per objective."""
    edges = offsets.tolist()
    first = 2 * objectives * sample
    cuts = [logps[edges[s] : edges[s + 1]] for s in range(first, first + 2 * objectives)]
    return cuts[0::2], cuts[1::2]


def mobt(kind, logps, offsets, objectives, *, beta=0.8, gamma=0.3, weights="mean", pooled="union", given=None):
    samples = (offsets.shape[0] - 1) // (2 * objectives)
    ids, step = torch.arange(samples) * (1 << 40) + 7, torch.tensor(12)
    starts, stops = edges_of(offsets, objectives)
    outputs = operation(kind, "weighted_loss")(
        logps, starts, stops, weights, given if weights == "given" else None, ids, -3, step, beta, gamma, pooled
    )
    return Mobt(*outputs), ids


@pytest.mark.parametrize("kind", EITHER)
def test_statistics_of_unequal_sequences(kind):
    offsets = torch.tensor([0, 1, 501, 504, 504, 581, 582, 2582])
    logps = -torch.rand(2582).exponential_() * 2.0
    stats = operation(kind, "segment_moments")(logps, offsets[:-1], offsets[1:])
    for value, exact in zip(stats, reference.sequence_stats(logps.double(), offsets), strict=True):
        assert value.dtype == torch.float32
        torch.testing.assert_close(value.double(), exact, rtol=1e-7, atol=1e-12)


@pytest.mark.parametrize("kind", EITHER)
def test_variance_of_confident_tokens_does_not_cancel(kind):
    logps = (1.0 - 1e-5 * torch.rand(400, dtype=torch.float64)).log().float()
    variance = operation(kind, "segment_moments")(logps, torch.tensor([0]), torch.tensor([400]))[3]
    exact = reference.sequence_stats(logps.double(), torch.tensor([0, 400]))[3]
    torch.testing.assert_close(variance.double(), exact, rtol=1e-6, atol=0)


@pytest.mark.parametrize("kind", EITHER)
def test_no_sequences(kind):
    none = torch.zeros(1, dtype=torch.int64)
    assert all(field.shape == (0,) for field in operation(kind, "segment_moments")(torch.zeros(0), none[:0], none[:0]))
    result, _ = mobt(kind, torch.zeros(0), none, 3)
    assert result.losses.shape == (0,) and result.coefficients.shape == (0, 3, 2)


@pytest.mark.parametrize("kind", EITHER)
@pytest.mark.parametrize("objectives", [1, 3, 64, 100])
@pytest.mark.parametrize("weights", ["gaussian", "mean", "uniform", "given"])
@pytest.mark.parametrize("pooled", ["union", "sum"])
def test_objective_equals_the_specification(kind, objectives, weights, pooled):
    samples, beta, gamma = 5, 0.8, 0.3
    logps, offsets = batch(samples, objectives)
    given = torch.rand(samples, objectives)
    result, ids = mobt(
        kind, logps, offsets, objectives, beta=beta, gamma=gamma, weights=weights, pooled=pooled, given=given
    )
    noise = gaussian_noise(ids, objectives, seed=-3, step=12)[..., 0]
    exact = logps.double().requires_grad_()
    for sample in range(samples):
        chosen, rejected = tokens(exact, offsets, objectives, sample)
        mu, sigma = reference.weight_distribution(chosen, rejected, pooled=pooled)
        alpha = {
            "gaussian": torch.softmax(mu + sigma * noise[sample], 0),
            "mean": torch.softmax(mu, 0),
            "uniform": torch.full_like(mu, 1.0 / objectives),
            "given": given[sample].double(),
        }[weights]
        loss = reference.amopo_sample_loss(chosen, rejected, alpha, beta=beta, gamma=gamma)
        close = {"rtol": 3e-7, "atol": 1e-9}
        torch.testing.assert_close(result.losses[sample].double(), loss.detach(), **close)
        torch.testing.assert_close(result.weights[sample].double(), alpha, **close)
        logged = reference.logged_values(chosen, rejected, alpha, beta=beta, pooled=pooled)
        # absolute: a margin is a difference of fp32 rewards, the deviation of equal numbers is 0 only to rounding
        torch.testing.assert_close(result.logged[sample].double(), logged, rtol=1e-6, atol=1e-6)
        (gradient,) = torch.autograd.grad(loss, exact)
        first = 2 * objectives * sample
        for side, cuts in enumerate((chosen, rejected)):
            sums = torch.stack([cut.detach().sum() for cut in cuts])
            torch.testing.assert_close(result.sums[sample, :, side].double(), sums, **close)
            assert result.lengths[sample, :, side].tolist() == [len(cut) for cut in cuts]
            starts = offsets[first + side : first + 2 * objectives : 2]
            torch.testing.assert_close(result.coefficients[sample, :, side].double(), gradient[starts], **close)


@pytest.mark.parametrize("kind", EITHER)
def test_huge_margins_neither_overflow_nor_vanish(kind):
    logps = torch.tensor([-1e4, 0.0, 0.0, -1e4])
    result, _ = mobt(kind, logps, torch.arange(5), 2, beta=1.0, gamma=0.0, weights="uniform")
    assert result.losses.tolist() == [5e3]
    assert result.coefficients.tolist() == [[[-0.5, 0.5], [0.0, 0.0]]]


OBJECTIVE = {
    "logps": torch.zeros(6),
    "starts": torch.tensor([[[0, 2]]]),
    "stops": torch.tensor([[[2, 6]]]),
    "weights": "mean",
    "given": None,
    "sample_ids": torch.tensor([1]),
    "seed": 0,
    "step": torch.tensor(0),
    "beta": 0.8,
    "gamma": 0.0,
    "pooled": "union",
}


@needs_cpp
@pytest.mark.parametrize(
    "change, error, message",
    [
        ({"stops": torch.tensor([[[2, 9]]])}, ValueError, "sequence 1 runs from 2 to 9, but there are 6 log-probs"),
        ({"stops": torch.tensor([[[2, 1]]])}, ValueError, "sequence 1 runs from 2 to 1"),
        ({"starts": torch.tensor([0, 2])}, ValueError, r"starts must be \[B, K, 2\]"),
        ({"weights": "random"}, ValueError, "gaussian, mean, uniform or given, got 'random'"),
        ({"weights": "gaussian", "sample_ids": torch.zeros(3, dtype=torch.int64)}, ValueError, "sample_ids must be"),
        ({"present": torch.ones(1, 2, dtype=torch.bool)}, ValueError, r"present must be a contiguous tensor \[1, 1\]"),
        ({"present": torch.ones(1, 1)}, TypeError, "present must be bool"),
        ({"pooled": "both"}, ValueError, "pooled must be union or sum, got 'both'"),
        ({"logps": torch.zeros(6, dtype=torch.float64)}, TypeError, "logps must be"),
    ],
)
def test_bad_input_is_named(change, error, message):
    arguments = OBJECTIVE | change
    logps, starts, stops = (arguments.pop(name) for name in ("logps", "starts", "stops"))
    with pytest.raises(error, match=message):
        cpp.mobt(logps, starts, stops, **arguments)


def test_schemas_and_fakes_hold():
    checks = ("test_schema", "test_faketensor")
    logps, offsets = batch(2, 2)
    starts, stops = edges_of(offsets, 2)
    torch.library.opcheck(
        torch.ops.amopo.segment_moments, (logps, starts.flatten(), stops.flatten()), test_utils=checks
    )
    arguments = (starts, stops, "gaussian", None, torch.arange(2), 0, torch.tensor(1), 0.8, 0.0, "union")
    torch.library.opcheck(torch.ops.amopo.weighted_loss, (logps, *arguments), test_utils=checks)
    head = (torch.tensor([1, 2]), None, None, 5.0, False)
    logits, out = torch.randn(2, 6), torch.empty(2, 6)
    torch.library.opcheck(torch.ops.amopo.row_pass, (logits, *head, *torch.empty(4, 2), out), test_utils=checks)
    torch.library.opcheck(torch.ops.amopo.row_pass, (logits, *head, *torch.empty(4, 2), None), test_utils=checks)
    torch.library.opcheck(torch.ops.amopo.row_pass_, (logits.clone(), *head, *torch.empty(4, 2)), test_utils=checks)
    state = torch.ones(3, 2)
    torch.library.opcheck(torch.ops.amopo.tile_pass, (logits, *head, *state, out), test_utils=checks)
    torch.library.opcheck(torch.ops.amopo.tile_pass_, (logits.clone(), *head, *state), test_utils=checks)


@pytest.mark.parametrize("kind", EITHER)
def test_out_of_place_leaves_the_logits_alone(kind):
    logits, outputs = torch.randn(3, 8), torch.full((4, 3), torch.nan)
    before, out = logits.clone(), torch.full((3, 8), torch.nan)
    head = (torch.tensor([1, 7, 0]), None, None, None, False)
    operation(kind, "row_pass")(logits, *head, *outputs, out)
    operation(kind, "tile_pass")(logits, *head, *outputs[1:], out)
    assert torch.equal(logits, before)
    exact = logits.double().log_softmax(1)[torch.arange(3), head[0]]
    torch.testing.assert_close(outputs[0].double(), exact, rtol=1e-6, atol=0)
    gradient = (logits.double().softmax(1) - torch.eye(8, dtype=torch.float64)[head[0]]) / outputs[3].double()[:, None]
    torch.testing.assert_close(out.double(), gradient, rtol=1e-5, atol=1e-6)
