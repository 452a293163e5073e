"""Attention over paths in C++ against the specification in fp64, and against torch's SDPA in the tested dtype."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from amopo.packing.layout import TreePaths
from amopo.packing.sdpa import run_sdpa
from amopo_kernels import cpp, reference
from amopo_kernels.path_attention import path_attention

pytestmark = pytest.mark.skipif(not cpp.available()[0], reason=cpp.available()[1])

# (queries, keys) of segments and their paths: one-token ones, blocks that end where paths do and beside them (64
# queries of three heads, 256 keys), segments without a query
LENGTHS = {
    "short": [(3, 3), (1, 4), (5, 9), (1, 1)],
    "shared": [(70, 70), (20, 60), (0, 3), (64, 64), (128, 150)],
    "long": [(515, 515), (2, 1026), (129, 600), (65, 577), (1, 256), (256, 257)],
}
HEADS = [(6, 2, 16, 16), (3, 3, 8, 8), (4, 1, 24, 40), (1, 1, 5, 3)]  # of queries, of keys, sizes of keys and values
# Of plain PyTorch's own error in the dtype, and what is added.
ALLOWED = {torch.float32: (3.0, 5e-6), torch.bfloat16: (1.2, 1e-4), torch.float16: (1.2, 1e-4)}


def starts(lengths: list[tuple[int, int]], which: int) -> Tensor:
    return torch.tensor([0, *(pair[which] for pair in lengths)]).cumsum(0).to(torch.int32)


def numbers(lengths, heads, dtype=torch.float32, scale=1.0) -> tuple[Tensor, ...]:
    """q, k, v as a model's layer has them (heads before tokens in memory), and the gradient of the result."""
    of_queries, of_keys, size_k, size_v = heads
    queries, keys = (sum(pair[which] for pair in lengths) for which in (0, 1))
    q = (scale * torch.randn(of_queries, queries, size_k)).to(dtype).transpose(0, 1)
    k, v = (torch.randn(keys, of_keys, size).to(dtype) for size in (size_k, size_v))
    return q, k, v, torch.randn(queries, of_queries, size_v).to(dtype)


def differentiated(function, q: Tensor, k: Tensor, v: Tensor, grad: Tensor) -> list[Tensor]:
    """out, dq, dk, dv."""
    parts = [part.detach().requires_grad_() for part in (q, k, v)]
    out = function(*parts)
    return [out.detach(), *torch.autograd.grad(out, parts, grad)]


def ours(lengths, *parts: Tensor, scaling: float = 0.3, window: int | None = None) -> list[Tensor]:
    both = starts(lengths, 0), starts(lengths, 1)
    return differentiated(lambda *qkv: path_attention(*qkv, *both, scaling=scaling, window=window), *parts)


def sdpa(lengths, *parts: Tensor, scaling: float = 0.3, window: int | None = None) -> list[Tensor]:
    paths = TreePaths(tuple(lengths), starts(lengths, 0), starts(lengths, 1), None, torch.zeros(0))
    return differentiated(lambda *qkv: run_sdpa(*qkv, paths, scaling, window, None), *parts)


def error(got: Tensor, exact: Tensor) -> float:
    """Relative; of results that are zero, or nearly, to hundredths (all that goes in is about 1)."""
    return ((got.double() - exact).norm() / (exact.norm() + 0.01 * exact.numel() ** 0.5)).item()


def assert_no_worse(got: list[Tensor], plain: list[Tensor], exact: list[Tensor]) -> None:
    factor, more = ALLOWED[got[0].dtype]
    for name, ours_, theirs, truth in zip(("out", "dq", "dk", "dv"), got, plain, exact, strict=True):
        assert ours_.dtype == theirs.dtype and ours_.shape == truth.shape
        assert error(ours_, truth) <= factor * error(theirs, truth) + more, name


@pytest.mark.parametrize("heads", HEADS)
@pytest.mark.parametrize("window", [None, 1, 7, 40])
def test_it_is_the_specification(heads, window):
    lengths = [*LENGTHS["short"], (30, 41), (0, 2), (9, 9)]
    parts = numbers(lengths, heads)
    exact = differentiated(
        lambda q, k, v: reference.path_attention(q, k, v, lengths, scaling=0.3, window=window),
        *(part.double() for part in parts),
    )
    for got, truth in zip(ours(lengths, *parts, window=window), exact, strict=True):
        torch.testing.assert_close(got.double(), truth, rtol=1e-5, atol=5e-6)


@pytest.mark.parametrize("dtype", ALLOWED)
@pytest.mark.parametrize("window", [None, 1, 100, 512])
@pytest.mark.parametrize("lengths", LENGTHS)
# Of equal sizes: torch has no kernel for others and writes the products out, which rounds nothing in between.
@pytest.mark.parametrize("heads", [*HEADS[:2], (4, 1, 24, 24)])
def test_its_error_is_that_of_torchs_kernel(heads, lengths, window, dtype):
    lengths = [pair for pair in LENGTHS[lengths] if pair[0]]  # torch's mask of no rows is none
    parts = numbers(lengths, heads, dtype)
    exact = sdpa(lengths, *(part.double() for part in parts), window=window)
    assert_no_worse(ours(lengths, *parts, window=window), sdpa(lengths, *parts, window=window), exact)


@pytest.mark.parametrize("dtype", ALLOWED)
def test_scores_far_apart_and_far_from_zero(dtype):
    """Maxima that move from block to block, and differences that a sum of plain exponentials would overflow on."""
    lengths, heads = [(700, 1300)], (2, 1, 16, 16)
    q, k, v, grad = numbers(lengths, heads, dtype, scale=8.0)
    k[900:] *= 3
    assert sdpa(lengths, q, k, v, grad)[0].isfinite().all()
    exact = sdpa(lengths, *(part.double() for part in (q, k, v, grad)))
    assert_no_worse(ours(lengths, q, k, v, grad), sdpa(lengths, q, k, v, grad), exact)


def test_strides_do_not_matter():
    lengths = LENGTHS["shared"]
    q, k, v, grad = numbers(lengths, HEADS[0])
    expected = ours(lengths, *(part.contiguous() for part in (q, k, v, grad)))
    wide = [torch.randn(part.shape[0], part.shape[1], 2 * part.shape[2]) for part in (q, k, v, grad)]
    apart = [whole[..., ::2].copy_(part) for whole, part in zip(wide, (q, k, v, grad), strict=True)]
    for got, truth in zip(ours(lengths, *apart), expected, strict=True):
        torch.testing.assert_close(got, truth, rtol=1e-6, atol=1e-6)
    one = grad.sum() * torch.ones(1).expand(grad.shape)  # the gradient of a sum: one number in many places
    for got, truth in zip(ours(lengths, q, k, v, one), ours(lengths, q, k, v, one.contiguous()), strict=True):
        assert torch.equal(got, truth)


@pytest.mark.parametrize("dtype", ALLOWED)
def test_paths_and_heads_do_not_see_each_other_by_a_bit(dtype):
    lengths = LENGTHS["shared"]
    q, k, v, grad = numbers(lengths, HEADS[0], dtype)
    before = ours(lengths, q, k, v, grad)
    rows, keys = slice(70, 90), slice(70, 130)  # the second path
    for part, cut in ((q, rows), (k, keys), (v, keys), (grad, rows)):
        part[cut] = torch.randn(part[cut].shape).to(dtype)
    after = ours(lengths, q, k, v, grad)
    for old, new, cut in zip(before, after, (rows, rows, keys, keys), strict=True):
        other = torch.ones(old.shape[0], dtype=torch.bool)
        other[cut] = False
        assert torch.equal(old[other], new[other]) and not torch.equal(old[cut], new[cut])
    k[:, 0] = torch.nan
    changed = ours(lengths, q, k, v, grad)
    assert changed[0][:, :3].isnan().all() and torch.equal(changed[0][:, 3:], after[0][:, 3:])


def test_later_tokens_are_not_seen_by_a_bit():
    lengths = [(200, 300)]
    q, k, v, grad = numbers(lengths, HEADS[0])
    before = ours(lengths, q, k, v, grad)[0]
    k[250:], v[250:] = torch.nan, torch.nan  # a block of queries that sees some of them reads them, and masks them
    after = ours(lengths, q, k, v, grad)[0]
    assert torch.equal(before[:128], after[:128]) and after[150:].isnan().all()
    k[250:], v[250:] = torch.randn(k[250:].shape), torch.randn(v[250:].shape)
    after = ours(lengths, q, k, v, grad)[0]
    assert torch.equal(before[:150], after[:150]) and not torch.equal(before[150:], after[150:])


@pytest.mark.parametrize(
    ("lengths", "heads"),
    [(LENGTHS["long"], HEADS[0]), ([(200, 200)], (8, 1, 128, 128)), ([(700, 700)], (14, 1, 64, 64))],
)
def test_runs_are_equal_to_the_bit_on_any_number_of_threads(lengths, heads):
    parts = numbers(lengths, heads)
    before, runs = torch.get_num_threads(), []
    try:
        for threads in (1, 2, 3, 4, 4):
            torch.set_num_threads(threads)
            runs.append(ours(lengths, *parts))
    finally:
        torch.set_num_threads(before)
    for run in runs[1:]:
        assert all(torch.equal(a, b) for a, b in zip(runs[0], run, strict=True))


def test_nothing_to_attend_to():
    for lengths in ([], [(0, 0)], [(0, 4), (0, 0)]):
        out, dq, dk, dv = ours(lengths, *numbers(lengths, HEADS[0]))
        assert out.shape == (0, 6, 16) and dq.shape == (0, 6, 16)
        assert not dk.any() and not dv.any() and dk.shape[0] == sum(keys for _, keys in lengths)


def test_keys_that_no_query_sees_have_no_gradient():
    lengths = [(3, 40)]
    _, _, dk, dv = ours(lengths, *numbers(lengths, HEADS[0]), window=4)
    assert not dk[:34].any() and not dv[:34].any() and dk[34].any()


def test_the_operator_is_one_that_the_compiler_knows():
    lengths = LENGTHS["shared"]
    q, k, v, _ = numbers(lengths, HEADS[0])
    arguments = (*(part.requires_grad_() for part in (q, k, v)), starts(lengths, 0), starts(lengths, 1), 0.3, 9)
    torch.library.opcheck(torch.ops.amopo.path_attention, arguments)


@pytest.mark.parametrize("dtype", ALLOWED)
def test_every_number_of_the_results_is_written(dtype):
    """Memory that is taken is filled with NaN first, the kernel's own as well."""
    lengths = [*LENGTHS["shared"], (0, 7)]
    parts = numbers(lengths, HEADS[0], dtype)
    expected = ours(lengths, *parts, window=30)
    torch.use_deterministic_algorithms(True)
    try:
        found = ours(lengths, *parts, window=30)
    finally:
        torch.use_deterministic_algorithms(False)
    assert all(torch.equal(a, b) and a.isfinite().all() for a, b in zip(found, expected, strict=True))


def test_frozen_keys_a_second_backward_and_none_at_all():
    lengths, both = LENGTHS["short"], (starts(LENGTHS["short"], 0), starts(LENGTHS["short"], 1))
    q, k, v, grad = numbers(lengths, HEADS[0])
    expected = ours(lengths, q, k, v, grad)
    q.requires_grad_()
    out = path_attention(q, k, v, *both, scaling=0.3)
    for _ in range(2):
        assert torch.equal(torch.autograd.grad(out, q, grad, retain_graph=True)[0], expected[1])
    with torch.no_grad():
        assert torch.equal(path_attention(q, k, v, *both, scaling=0.3), expected[0])
    with torch.inference_mode():
        assert torch.equal(path_attention(q, k, v, *both, scaling=0.3), expected[0])


def test_gradients_of_gradients_are_refused():
    lengths, both = LENGTHS["short"], (starts(LENGTHS["short"], 0), starts(LENGTHS["short"], 1))
    q, k, v, _ = numbers(lengths, HEADS[0])
    out = path_attention(q.requires_grad_(), k, v, *both, scaling=0.3)
    (first,) = torch.autograd.grad(out.sum(), q, create_graph=True)
    with pytest.raises(RuntimeError, match="no gradients of gradients"):
        first.square().sum().backward()


def test_forward_mode_derivatives_are_refused():
    lengths, both = LENGTHS["short"], (starts(LENGTHS["short"], 0), starts(LENGTHS["short"], 1))
    q, k, v, _ = numbers(lengths, HEADS[0])
    with pytest.raises(RuntimeError, match="no forward-mode derivatives, v has a tangent"):
        torch.func.jvp(lambda v: path_attention(q, k, v, *both, scaling=0.3), (v,), (torch.ones_like(v),))


BAD = {
    "keys .* do not fit": {"k": torch.zeros(4, 2, 8)},
    "6 query heads do not share 4 key heads": {"k": torch.zeros(4, 4, 16), "v": torch.zeros(4, 4, 16)},
    "values must be .tokens, heads, size., got .4, 96.": {"q": torch.zeros(4, 96)},
    "values must be .tokens, heads, size., got .4, 32.": {"k": torch.zeros(4, 32)},
    "0 query heads do not share 2 key heads": {"q": torch.zeros(4, 0, 16)},
    "segment 1 has 1 queries and its path -4": {
        "starts_q": torch.tensor([0, 1, 2, 4], dtype=torch.int32),
        "starts_k": torch.tensor([0, 2_000_000_000, -2_000_000_000, 4], dtype=torch.int32),
    },
    "v is BFloat16, q is Float": {"v": torch.zeros(4, 2, 16, dtype=torch.bfloat16)},
    "q must be .* or float16, got Double": {n: torch.zeros(4, h, 16).double() for n, h in zip("qkv", (6, 2, 2))},
    "starts must be int32": {"starts_q": torch.tensor([0, 4])},
    "segments run from 0 to 5": {"starts_q": torch.tensor([0, 5], dtype=torch.int32)},
    "paths from 0 to 3": {"starts_k": torch.tensor([0, 3], dtype=torch.int32)},
    "starts of 2 segments and of 1 paths": {"starts_q": torch.tensor([0, 2, 4], dtype=torch.int32)},
    "segment 1 has 3 queries and its path 1 keys": {
        "starts_q": torch.tensor([0, 1, 4], dtype=torch.int32), "starts_k": torch.tensor([0, 3, 4], dtype=torch.int32),
    },
    "window of 0 keys": {"window": 0},
    "starts_k is on meta": {"starts_k": torch.zeros(2, dtype=torch.int32, device="meta")},
}  # fmt: skip


@pytest.mark.parametrize("message", BAD)
def test_what_does_not_fit_is_refused(message):
    given = {"q": torch.zeros(4, 6, 16), "k": torch.zeros(4, 2, 16), "v": torch.zeros(4, 2, 16)}
    given |= {"starts_q": torch.tensor([0, 4], dtype=torch.int32), "starts_k": torch.tensor([0, 4], dtype=torch.int32)}
    with pytest.raises((ValueError, TypeError), match=message):
        path_attention(**{**given, "scaling": 1.0, **BAD[message]})
