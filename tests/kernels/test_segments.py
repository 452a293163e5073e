"""Per-sequence statistics against the specification in fp64."""

from __future__ import annotations

import os

import pytest
import torch

from amopo_kernels import reference, sequence_stats
from amopo_kernels.segments import _sequence_stats_op, expand_segments

TRITON = os.environ.get("AMOPO_BACKEND") == "triton"


def cut(lengths: list[int]) -> torch.Tensor:
    return torch.tensor([0, *lengths]).cumsum(0)


@pytest.mark.parametrize("dtype, tol", [(torch.float64, 1e-13), (torch.float32, 3e-7)])
@pytest.mark.parametrize("offsets_dtype", [torch.int32, torch.int64])
def test_unequal_segments_match_fp64(dtype, tol, offsets_dtype):
    offsets = cut([1, 500, 3, 0, 77, 1, 1, 2000]).to(offsets_dtype)
    logps = -torch.rand(int(offsets[-1]), dtype=torch.float64).exponential_() * 2.0
    stats = sequence_stats(logps.to(dtype), offsets)
    truth = reference.sequence_stats(logps.to(dtype).double(), offsets)
    for value, exact in zip(stats, truth, strict=True):
        assert value.dtype == dtype
        torch.testing.assert_close(value.double(), exact, rtol=tol, atol=tol)


def test_variance_of_confident_tokens_does_not_cancel():
    """p near 1 with a spread of 1e-5: E[p^2] - E[p]^2 in fp32 would give noise of 1e-7 instead of 1e-10."""
    probs = 1.0 - 1e-5 * torch.rand(400, dtype=torch.float64)
    logps = probs.log().float()
    stats = sequence_stats(logps, cut([400]))
    exact = reference.sequence_stats(logps.double(), cut([400]))[3]
    assert abs(float(stats.var_prob) - float(exact)) < 5e-3 * float(exact)
    naive = float((logps.exp() ** 2).mean() - logps.exp().mean() ** 2)
    assert abs(naive - float(exact)) > 0.5 * float(exact)  # the trap is real


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
def test_only_the_sum_carries_gradients(dtype):
    logps = (-torch.rand(9, dtype=dtype)).requires_grad_()
    stats = sequence_stats(logps, cut([4, 2, 3]))
    assert stats.sum_logp.requires_grad and not any(field.requires_grad for field in stats[1:])
    (gradient,) = torch.autograd.grad(stats.sum_logp, logps, torch.tensor([2.0, -1.0, 0.5]).to(dtype))
    assert gradient.tolist() == [2.0] * 4 + [-1.0] * 2 + [0.5] * 3


def test_one_token_has_no_variance():
    stats = sequence_stats(torch.tensor([-0.3]), cut([1]))
    assert float(stats.var_prob) == 0.0 and float(stats.length) == 1.0


def test_no_sequences():
    assert all(field.shape == (0,) for field in sequence_stats(torch.zeros(0), torch.zeros(1, dtype=torch.int64)))


@pytest.mark.parametrize(
    "logps, offsets, error, message",
    [
        (torch.zeros(2, 3), torch.tensor([0, 6]), ValueError, r"logps must be \[N\]"),
        (torch.zeros(6).bfloat16(), torch.tensor([0, 6]), TypeError, "float32 or float64"),
        (torch.zeros(6), torch.tensor([0.0, 6.0]), ValueError, "offsets must be an integer"),
    ],
)
def test_bad_input_is_named(logps, offsets, error, message):
    with pytest.raises(error, match=message):
        sequence_stats(logps, offsets)


@pytest.mark.skipif(TRITON, reason="opcheck traces the operator, whichever backend runs it")
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
def test_opcheck(dtype):
    offsets = cut([4, 1, 3])
    torch.library.opcheck(_sequence_stats_op, ((-torch.rand(8, dtype=dtype)).requires_grad_(), offsets))
    torch.library.opcheck(_sequence_stats_op, (-torch.rand(8, dtype=dtype), offsets))
    values = torch.randn(3, dtype=dtype)
    torch.library.opcheck(expand_segments, (values, offsets[:-1], offsets[1:], 10))
    torch.library.opcheck(expand_segments, (values.view(1, 3), offsets[:-1].view(1, 3), offsets[1:].view(1, 3), 8))
