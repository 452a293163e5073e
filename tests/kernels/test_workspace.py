"""Memory of the head: every allocation is watched, in forward and backward, and compared with the formula."""

from __future__ import annotations

import pytest
import torch

from amopo_kernels import linear_logprobs, workspace_bytes
from amopo_kernels.products import Products
from amopo_kernels.workspace import default_budget, plan_workspace
from tests.kernels.allocations import AllocationWatch

ROWS, HIDDEN, VOCAB = 96, 32, 4001
FULL_LOGITS = ROWS * VOCAB * 4
DTYPES = [torch.float32, torch.bfloat16, torch.float16, torch.float64]


def run_watched(
    dtype, budget, *, train_head=True, train_body=True, softcap=None, bias=False, logits_dtype=None, shape=None
):
    rows, hidden_size, vocab = shape or (ROWS, HIDDEN, VOCAB)
    hidden = torch.randn(rows, hidden_size).to(dtype).requires_grad_(train_body)
    weight = (torch.randn(vocab, hidden_size) * 0.3).to(dtype).requires_grad_(train_head)
    bias = torch.randn(vocab).to(dtype).requires_grad_(train_head) if bias else None
    targets = torch.randint(0, vocab, (rows,))
    upstream = torch.randn(rows, dtype=torch.float64 if dtype == torch.float64 else torch.float32)
    inputs = [t for t in (hidden, weight, bias, targets, upstream) if t is not None]
    with AllocationWatch(*inputs) as watch:
        logps = linear_logprobs(
            hidden, weight, targets, bias=bias, softcap=softcap, budget=budget, logits_dtype=logits_dtype
        )
        leaves = [leaf for leaf in (hidden, weight, bias) if leaf is not None and leaf.requires_grad]
        gradients = torch.autograd.grad(logps, leaves, upstream) if leaves else ()
    results = sum(g.numel() * g.element_size() for g in gradients if g.shape[0] == vocab)
    return watch, results


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("logits_dtype", [None, "input"])
@pytest.mark.parametrize("budget", [150_000, 400_000, 1_000_000, 4_000_000, None])
def test_no_tensor_exceeds_the_budget_and_the_peak_is_the_formula(dtype, budget, logits_dtype):
    watch, results = run_watched(dtype, budget, logits_dtype=logits_dtype)
    granted = budget or default_budget(HIDDEN, VOCAB, frozen_head=False)
    gradient = VOCAB * HIDDEN * dtype.itemsize  # dW: the caller's, whatever the budget
    assert watch.largest <= max(granted, gradient), watch.largest_from
    promised = workspace_bytes((ROWS, HIDDEN, VOCAB), dtype, budget, logits_dtype=logits_dtype)
    assert watch.peak - results <= promised * 1.05
    if budget is not None and budget < FULL_LOGITS // 4:
        assert promised < FULL_LOGITS  # the point of it all


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(
    "options",
    [
        {"train_head": False},
        {"train_body": False},
        {"train_head": False, "train_body": False},
        {"softcap": 4.0},
        {"bias": True},
    ],
    ids=["frozen head", "frozen body", "no gradient", "softcap", "bias"],
)
@pytest.mark.parametrize("budget", [200_000, 1_000_000])
def test_formula_holds_for_frozen_parts_softcap_and_bias(dtype, options, budget):
    watch, results = run_watched(dtype, budget, **options)
    promised = workspace_bytes(
        (ROWS, HIDDEN, VOCAB),
        dtype,
        budget,
        frozen=not options.get("train_head", True),
        frozen_body=not options.get("train_body", True),
        softcap="softcap" in options,
    )
    vocab_vectors = 4 * VOCAB * 8 if options.get("bias") else 0
    assert watch.peak - results <= promised * 1.05 + vocab_vectors
    assert watch.largest <= max(budget, VOCAB * HIDDEN * dtype.itemsize), watch.largest_from


def test_formula_holds_under_autocast():
    hidden, weight = torch.randn(ROWS, HIDDEN, requires_grad=True), torch.randn(VOCAB, HIDDEN, requires_grad=True)
    targets = torch.randint(0, VOCAB, (ROWS,))
    for budget in (500_000, 2_000_000):
        with AllocationWatch(hidden, weight, targets) as watch:
            with torch.autocast("cpu", dtype=torch.bfloat16):
                logps = linear_logprobs(hidden, weight, targets, budget=budget)
            gradients = torch.autograd.grad(logps.sum(), (hidden, weight))
        casts = 2 * ROWS * HIDDEN * 4  # of hidden and of its gradient, made by autocast around the op
        promised = workspace_bytes((ROWS, HIDDEN, VOCAB), torch.bfloat16, budget, autocast_weight=True)
        assert watch.peak - gradients[1].numel() * 4 <= promised * 1.05 + casts


def test_a_watch_that_sees_full_logits_fails_them():
    """The watch itself works: plain PyTorch trips it."""
    hidden, weight = torch.randn(ROWS, HIDDEN, requires_grad=True), torch.randn(VOCAB, HIDDEN)
    with AllocationWatch(hidden, weight) as watch:
        torch.log_softmax(hidden @ weight.T, -1).sum().backward()
    assert watch.largest == FULL_LOGITS and watch.peak >= 2 * FULL_LOGITS


def test_budget_slides_from_keeping_everything_to_rebuilding_everything():
    products = Products("native", torch.float32, torch.float32)
    kept = [
        plan_workspace(
            (ROWS, HIDDEN, VOCAB), products, budget=budget, need_hidden_grad=True, need_weight_grad=True
        ).kept_rows
        for budget in (60_000, 400_000, 800_000, 1_600_000, 3_000_000)
    ]
    assert kept == sorted(kept) and kept[0] < ROWS // 10 and kept[-1] == ROWS


def test_smallest_budget_named_by_the_error_works():
    shape = (8, 6, 97)
    for dtype in DTYPES:
        for frozen in (False, True):
            with pytest.raises(ValueError, match=r"at least budget=(\d+)") as error:
                workspace_bytes(shape, dtype, 1, frozen)
            smallest = int(str(error.value).rsplit("=", 1)[1])
            with pytest.raises(ValueError, match="too small for one row"):
                workspace_bytes(shape, dtype, smallest - 1, frozen)
            watch, _ = run_watched(dtype, smallest, train_head=not frozen, shape=shape)
            assert watch.largest <= max(smallest, 97 * 6 * dtype.itemsize)


def test_documented_defaults():
    gib = 1 << 30
    assert default_budget(896, 151936, frozen_head=False) == gib
    assert default_budget(5120, 152064, frozen_head=False) == 4 * 5120 * 152064
    assert default_budget(5120, 152064, frozen_head=True) == gib // 2
    assert workspace_bytes((2048, 896, 151936), torch.bfloat16, None, True) < 0.6 * gib


@pytest.mark.parametrize("shape", [(-1, 4, 4), (1, 0, 4), (1, 4, 0)])
def test_impossible_shapes_are_refused(shape):
    with pytest.raises(ValueError, match="shape must be"):
        workspace_bytes(shape, torch.float32)


def test_unsupported_dtype_is_refused():
    with pytest.raises(TypeError, match="dtype torch.int8 is not supported"):
        workspace_bytes((1, 4, 4), torch.int8)
