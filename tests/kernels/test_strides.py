"""Strided vectors give what their contiguous copies give, for every backend, and the right numbers.

A column of a matrix of ids is such a vector. Kernels read vectors without strides, so each must be copied before.
"""

from __future__ import annotations

import os

import pytest
import torch
from torch import Tensor

from amopo_kernels import cpp, linear_logprobs, reference, sequence_stats
from amopo_kernels.mobt_op import mobt
from amopo_kernels.segments import expand_segments
from tests.kernels.head_cases import make_case, relative_error

BUILT, REASON = cpp.available()
BACKENDS = ["eager", pytest.param("cpp", marks=pytest.mark.skipif(not BUILT, reason=REASON))]
if os.environ.get("AMOPO_BACKEND") == "triton":
    BACKENDS = ["triton"]


@pytest.fixture(autouse=True, params=BACKENDS)
def backend(request, monkeypatch):
    monkeypatch.setenv("AMOPO_BACKEND", request.param)


def strided(tensor: Tensor) -> Tensor:
    """The same numbers as every third element of a buffer of others."""
    noise = torch.full((*tensor.shape, 3), 1, dtype=tensor.dtype)
    noise[..., 1] = tensor.detach()
    view = noise[..., 1]
    assert not view.is_contiguous() and torch.equal(view, tensor.detach())
    return view.requires_grad_(tensor.requires_grad)


def check_equal(results: tuple, expected: tuple) -> None:
    for value, right in zip(results, expected, strict=True):
        assert torch.equal(value, right)


@pytest.mark.parametrize("budget", [None, 60_000], ids=["kept", "rebuilt"])
def test_targets_and_bias_of_the_head(budget):
    case = make_case(torch.float32, bias=True)
    truth = case.converted(torch.float64).run(reference.linear_logprobs)
    expected = case.run(linear_logprobs, budget=budget)
    case.targets, case.bias = strided(case.targets), strided(case.bias)
    results = case.run(linear_logprobs, budget=budget)
    check_equal(results, expected)
    for value, exact in zip(results, truth, strict=True):
        assert relative_error(value, exact) < 3e-6


def test_int32_targets_too():
    case = make_case(torch.float32)
    expected = linear_logprobs(case.hidden, case.weight, case.targets)
    assert torch.equal(linear_logprobs(case.hidden, case.weight, strided(case.targets.int())), expected)


def test_offsets_and_logps_of_sequences():
    offsets = torch.tensor([0, 4, 5, 40, 77])
    logps = -torch.rand(77)
    truth = reference.sequence_stats(logps.double(), offsets)
    results = sequence_stats(strided(logps).requires_grad_(), strided(offsets))
    check_equal(results, sequence_stats(logps, offsets))
    for value, exact in zip(results, truth, strict=True):
        torch.testing.assert_close(value.double(), exact, rtol=1e-6, atol=1e-7)


def test_gradient_of_sequence_sums():
    logps, offsets = (-torch.rand(9)).requires_grad_(), strided(torch.tensor([0, 4, 6, 9]))
    upstream = strided(torch.tensor([2.0, -1.0, 0.5]))
    (gradient,) = torch.autograd.grad(sequence_stats(logps, offsets).sum_logp, logps, upstream)
    assert gradient.tolist() == [2.0] * 4 + [-1.0] * 2 + [0.5] * 3


def test_segments_of_values():
    values, starts, stops = torch.tensor([5.0, 7.0]), torch.tensor([3, 0]), torch.tensor([4, 2])
    spread = expand_segments(strided(values), strided(starts), strided(stops), 5)
    assert spread.tolist() == [7.0, 7.0, 0.0, 5.0, 0.0]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("weights", ["given", "gaussian"])
def test_everything_the_objective_reads(weights, dtype):
    samples, objectives = 3, 4
    edges = torch.cat([torch.zeros(1, dtype=torch.int64), torch.randint(1, 9, (samples * objectives * 2,)).cumsum(0)])
    starts, stops = (edge.view(samples, objectives, 2) for edge in (edges[:-1], edges[1:]))
    logps = (-torch.rand(int(edges[-1]), dtype=dtype)).requires_grad_()
    given = torch.rand(samples, objectives) if weights == "given" else None
    ids = torch.randint(0, 2**40, (samples,))

    def run(change) -> tuple:
        leaf = change(logps)
        result = mobt(
            leaf, change(starts), change(stops), weights=weights, given=None if given is None else change(given),
            sample_ids=change(ids), seed=3, step=torch.tensor(5), beta=0.8, gamma=0.0, pooled="union",
        )  # fmt: skip
        return (*result, *torch.autograd.grad(result.losses.sum(), leaf))

    results = run(strided)
    check_equal(results, run(lambda tensor: tensor))
    if given is not None:
        assert torch.equal(results[1], given.to(dtype))


@pytest.mark.skipif(os.environ.get("AMOPO_BACKEND") != "triton", reason="C++ says so in tests of its own")
def test_a_kernel_of_the_head_refuses_what_it_cannot_read():
    from amopo_kernels.row_pass import RowState, Transform
    from amopo_kernels.triton import launch

    state, logits, targets = RowState.empty(4, torch.float32, torch.device("cpu")), torch.randn(4, 6), torch.arange(4)
    options = {"logp": torch.empty(4), "state": state, "out": None, "half_range": False, "block_rows": 1}
    with pytest.raises(ValueError, match="targets must be contiguous"):
        launch.row_pass(logits, strided(targets), None, Transform(), **options)
    with pytest.raises(ValueError, match="bias must be contiguous"):
        launch.row_pass(logits, targets, strided(torch.zeros(6)), Transform(), **options)
