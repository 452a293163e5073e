"""Rows of logits and G start aligned, whatever the vocabulary; what stands in the gap reaches no result."""

from __future__ import annotations

import pytest
import torch

from amopo_kernels import linear_logprobs, reference, workspace_bytes
from amopo_kernels.head_call import HeadCall
from amopo_kernels.products import choose_products
from amopo_kernels.workspace import plan_workspace, row_stride
from tests.kernels.allocations import AllocationWatch
from tests.kernels.head_cases import relative_error

ROWS, HIDDEN, VOCAB = 37, 16, 1153  # an odd vocabulary, one column into a tenth tile of 128


def test_strides_are_multiples_of_128_but_for_short_vocabularies():
    assert [row_stride(v) for v in (7, 1023, 1024, 1025, 50257, 151936, 151937)] == [
        7, 1023, 1024, 1152, 50304, 151936, 152064,
    ]  # fmt: skip


@pytest.mark.parametrize("dtype, tol", [(torch.float64, 1e-12), (torch.float32, 3e-6), (torch.bfloat16, 1.5e-2)])
@pytest.mark.parametrize("logits_dtype", [None, "input"])
@pytest.mark.parametrize("budget", [None, 60_000])
@pytest.mark.parametrize("frozen", [False, True])
def test_an_odd_vocabulary(dtype, tol, logits_dtype, budget, frozen, monkeypatch):
    # Memory that was not written holds NaN: a product over the gap would show.
    torch.use_deterministic_algorithms(True)
    monkeypatch.setattr(torch.utils.deterministic, "fill_uninitialized_memory", True)
    try:
        hidden = torch.randn(ROWS, HIDDEN).to(dtype).requires_grad_()
        weight = torch.randn(VOCAB, HIDDEN).to(dtype).requires_grad_(not frozen)
        targets, upstream = torch.randint(0, VOCAB, (ROWS,)), torch.randn(ROWS, dtype=torch.float64)
        targets[0], targets[1] = VOCAB - 1, 0
        leaves = [leaf for leaf in (hidden, weight) if leaf.requires_grad]
        logps = linear_logprobs(hidden, weight, targets, logits_dtype=logits_dtype, budget=budget)
        got = torch.autograd.grad(logps, leaves, upstream.to(logps.dtype))
    finally:
        torch.use_deterministic_algorithms(False)
    truth = [leaf.detach().double().requires_grad_() for leaf in (hidden, weight)]
    exact = reference.linear_logprobs(*truth, targets)
    exact_grads = torch.autograd.grad(exact, truth, upstream)
    assert relative_error(logps, exact) < tol
    for value, right in zip(got, exact_grads, strict=False):
        assert relative_error(value, right) < tol


def test_memory_counts_the_padding():
    plain, padded = (workspace_bytes((ROWS, HIDDEN, v), torch.float32, None) for v in (1152, 1153))
    assert padded - plain >= ROWS * 127 * 4


def plan(rows, device_type, budget=None, frozen=False):
    products = choose_products(torch.bfloat16, torch.device(device_type), None)
    return plan_workspace(
        (rows, 3584, 152064), products, budget=budget, need_hidden_grad=True, need_weight_grad=not frozen,
        device_type=device_type,
    )  # fmt: skip


@pytest.mark.parametrize("rows", [2048, 8192, 16384])
@pytest.mark.parametrize("frozen", [False, True])
def test_on_a_gpu_chunks_fill_the_tiles_of_its_products(rows, frozen):
    sizes = plan(rows, "cuda", frozen=frozen)
    assert sizes.chunk_rows % 128 == 0 and sizes.chunk_rows >= 512
    assert sizes.kept_rows % 128 == 0


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("budget", [300_000, 1_000_000, None])
@pytest.mark.parametrize("frozen", [False, True], ids=["weight too", "adapter alone"])
def test_memory_of_an_adapter_on_the_head_is_in_the_formula(dtype, budget, frozen):
    rows, hidden_size, vocab, rank = 96, 32, 4001, 8
    hidden = torch.randn(rows, hidden_size).to(dtype).requires_grad_()
    weight = torch.randn(vocab, hidden_size).to(dtype).requires_grad_(not frozen)
    a, b = (torch.randn(shape).to(dtype).requires_grad_() for shape in ((rank, hidden_size), (vocab, rank)))
    targets = torch.randint(0, vocab, (rows,))
    leaves = [leaf for leaf in (hidden, weight, a, b) if leaf.requires_grad]
    with AllocationWatch(hidden, weight, a, b, targets) as watch:
        logps = linear_logprobs(hidden, weight, targets, lora=(a, b, 2.0), budget=budget)
        gradients = torch.autograd.grad(logps.sum(), leaves)
    owned = sum(g.numel() * g.element_size() for g in gradients if g.shape[0] == vocab)
    promised = workspace_bytes((rows, hidden_size, vocab), dtype, budget, frozen, lora_rank=rank)
    assert watch.peak - owned <= promised * 1.05


def test_the_plan_of_a_call_is_the_one_that_was_promised():
    hidden, weight = torch.zeros(ROWS, HIDDEN), torch.zeros(VOCAB, HIDDEN)
    from tests.kernels.test_operators import PLAIN

    call = HeadCall.make(hidden, weight, PLAIN)
    assert call.plan.total_bytes == workspace_bytes((ROWS, HIDDEN, VOCAB), torch.float32)
