"""Gathered rows and their gradients: exact in fp64, one rounding in half precision, the same order every time."""

from __future__ import annotations

import os

import pytest
import torch

from amopo_kernels.gather import GatherIndex, _gather_op, gather_rows

TRITON = os.environ.get("AMOPO_BACKEND") == "triton"
ROWS = 23


def make_index(count=90):
    index = torch.randint(0, ROWS, (count,))
    index[index == 5] = 6  # row 5 is read by nobody
    index[:8] = 3
    return index


@pytest.mark.parametrize("shape", [(), (17,), (3, 8)], ids=str)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
def test_values_and_gradients(shape, dtype):
    index = make_index()
    x = torch.randn(ROWS, *shape, dtype=dtype, requires_grad=True)
    out = gather_rows(x, GatherIndex.of(index, ROWS))
    assert torch.equal(out, x[index])
    upstream = torch.randn_like(out)
    (got,) = torch.autograd.grad(out, x, upstream)
    exact = torch.zeros(ROWS, *shape, dtype=torch.float64)
    for position, row in enumerate(index.tolist()):
        exact[row] += upstream[position].double()
    torch.testing.assert_close(got.double(), exact, rtol=1e-12 if dtype == torch.float64 else 1e-6, atol=1e-6)
    assert not got[5].any()


@pytest.mark.skipif(TRITON, reason="the interpreter truncates casts to bf16")
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_copies_are_added_in_fp32_and_rounded_once(dtype):
    index = torch.arange(4).repeat(8)
    upstream = torch.randn(32, 64, dtype=torch.float64).to(dtype)
    x = torch.randn(4, 64).to(dtype).requires_grad_()
    (got,) = torch.autograd.grad(gather_rows(x, GatherIndex.of(index, 4)), x, upstream)
    exact = upstream.double().view(8, 4, 64).sum(0)
    assert got.dtype == dtype
    assert torch.equal(got, exact.float().to(dtype)) or ((got.double() - exact) / exact).abs().max() < 0.01
    added_in_half = torch.zeros_like(got)
    for part in upstream.view(8, 4, 64):
        added_in_half += part
    error, plain = ((value.double() - exact).norm() / exact.norm() for value in (got, added_in_half))
    assert error < 0.7 * plain


def test_rows_that_are_views_and_gradients_that_are_not_contiguous():
    x = torch.randn(4, ROWS, 6, requires_grad=True)
    index = make_index()
    out = gather_rows(x.transpose(0, 1), GatherIndex.of(index, ROWS))
    upstream = torch.randn(4, 90, 6).transpose(0, 1)
    (got,) = torch.autograd.grad(out, x, upstream)
    (exact,) = torch.autograd.grad(x.transpose(0, 1)[index], x, upstream)
    torch.testing.assert_close(got, exact)


def test_nothing_to_gather():
    x = torch.randn(3, 4, requires_grad=True)
    out = gather_rows(x, GatherIndex.of(torch.zeros(0, dtype=torch.int64), 3))
    assert out.shape == (0, 4)
    (grad,) = torch.autograd.grad(out.sum(), x)
    assert grad.shape == (3, 4) and not grad.any()


def test_the_same_bits_again():
    rows = GatherIndex.of(make_index(5000), ROWS)
    upstream = torch.randn(5000, 33)
    x = torch.randn(ROWS, 33, requires_grad=True)
    first, again = (torch.autograd.grad(gather_rows(x, rows), x, upstream)[0] for _ in range(2))
    assert torch.equal(first, again)


@pytest.mark.skipif(TRITON, reason="opcheck traces the operator, whichever backend runs it")
def test_opcheck():
    rows = GatherIndex.of(make_index(), ROWS)
    x = torch.randn(ROWS, 5, requires_grad=True)
    torch.library.opcheck(_gather_op, (x, rows.index, rows.order, rows.offsets))


def test_bad_input_is_named():
    with pytest.raises(ValueError, match="rows 0 to 7 are asked for, but there are 7"):
        GatherIndex.of(torch.tensor([0, 7]), 7)
    with pytest.raises(ValueError, match=r"takes int64 \[N\] on the CPU"):
        GatherIndex.of(torch.tensor([[0]]), 1)
    with pytest.raises(ValueError, match="made for 2 rows, x has 3"):
        gather_rows(torch.zeros(3, 1), GatherIndex.of(torch.tensor([1]), 2))
