"""A whole loss on the device: no waiting for it, capture in a graph, memory as promised, the same bits again."""

from __future__ import annotations

import dataclasses
import os

import pytest
import torch

from amopo import fused_loss
from amopo.packing.layout import TreeLayout
from amopo_kernels import linear_logprobs, reference, workspace_bytes
from tests.gpu.conftest import DRY_RUN
from tests.gpu.head_cases import make_case, relative_error

SAMPLES, OBJECTIVES, HIDDEN, VOCAB = 3, 4, 64, 5003


class Step:
    """Hidden states of a packed row, a head and a layout in which rows are shared between sequences."""

    def __init__(self, device, dtype=torch.bfloat16):
        lengths = torch.randint(1, 40, (SAMPLES * OBJECTIVES * 2,))
        lengths[0] = 1
        offsets = torch.cat([torch.zeros(1, dtype=torch.int64), lengths.cumsum(0)])
        tokens, rows = int(offsets[-1]), int(offsets[-1]) - 20
        self.layout = TreeLayout(
            num_samples=SAMPLES, num_objectives=OBJECTIVES, row_index=torch.randperm(rows + 30)[:rows],
            row_target=torch.randint(0, VOCAB, (rows,)),
            fan_out=torch.cat([torch.arange(rows), torch.randint(0, rows, (20,))])[:tokens], offsets=offsets,
            max_target=VOCAB - 1, num_tokens=rows + 30,
        ).to(device)  # fmt: skip
        self.hidden = torch.randn(rows + 30, HIDDEN, device=device).to(dtype).requires_grad_()
        self.weight = (torch.randn(VOCAB, HIDDEN, device=device) * 0.3).to(dtype).requires_grad_()
        self.ids = torch.arange(SAMPLES, device=device)

    def loss(self, **options):
        options = {"step": 3, "seed": 1, "sample_ids": self.ids, **options}
        return fused_loss(self.hidden, self.weight, layout=self.layout, **options)

    def run(self, **options) -> list[torch.Tensor]:
        result = self.loss(**options)
        return [result.loss.detach(), *torch.autograd.grad(result.loss, (self.hidden, self.weight))]


def _offsets_without_sharing(layout):
    """As many sequences over rows of their own: sums of shared rows add in any order unless asked otherwise."""
    rows, count = layout.row_index.shape[0], layout.num_sequences
    edges = torch.arange(count + 1, device=layout.offsets.device) * (rows // count)
    edges[-1] = rows
    return edges


def test_loss_and_gradients_match_fp64(device):
    step = Step(device)
    layout, weights = step.layout, torch.rand(SAMPLES, OBJECTIVES, device=device) + 0.1
    got = step.run(weights=weights, logits_dtype=torch.float32)  # CUDA's default; a CPU with bf16 units has another
    hidden, weight = (t.detach().double().requires_grad_() for t in (step.hidden, step.weight))
    logps = reference.linear_logprobs(hidden[layout.row_index], weight, layout.row_target)[layout.fan_out]
    edges = layout.offsets.tolist()
    tokens = [logps[a:b] for a, b in zip(edges[:-1], edges[1:], strict=True)]
    alpha = weights.double() / weights.double().sum(1, keepdim=True)
    losses = []
    for b in range(SAMPLES):
        mine = tokens[b * OBJECTIVES * 2 : (b + 1) * OBJECTIVES * 2]
        losses.append(reference.amopo_sample_loss(mine[0::2], mine[1::2], alpha[b], beta=0.8))
    loss = torch.stack(losses).mean()
    exact = [loss, *torch.autograd.grad(loss, (hidden, weight))]
    for value, right, tol in zip(got, exact, (2e-5, 1e-2, 1e-2), strict=True):
        assert relative_error(value, right) < tol


@pytest.mark.cuda_only
@pytest.mark.parametrize("budget", [None, 2_000_000])
def test_forward_and_backward_never_wait_for_the_device(device, budget):
    torch.use_deterministic_algorithms(False)  # as users run it; the fixture sets it again for the next test
    step = Step(device)
    step.run(budget=budget)  # kernels are compiled, libraries are up
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        results = step.run(budget=budget)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert all(torch.isfinite(t).all() for t in results)


@pytest.mark.cuda_only
def test_a_step_runs_in_a_cuda_graph(device):
    torch.use_deterministic_algorithms(False)
    step = Step(device)
    step.layout = dataclasses.replace(step.layout, fan_out=None, offsets=_offsets_without_sharing(step.layout))
    expected = step.run()
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            step.run()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = step.run()
    with torch.no_grad():
        kept = step.hidden.clone()
        step.hidden.copy_(torch.randn_like(kept))
        graph.replay()
        other = [t.clone() for t in captured]
        step.hidden.copy_(kept)
        graph.replay()
    torch.cuda.synchronize()
    assert not torch.equal(other[0], expected[0])
    for value, right in zip(captured, expected, strict=True):
        assert torch.equal(value, right)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_a_step_is_bitwise_equal_from_run_to_run(device, dtype):
    step = Step(device, dtype)
    for first, again in zip(step.run(), step.run(), strict=True):
        assert torch.equal(first, again)


@pytest.mark.skipif(
    os.environ.get("AMOPO_BACKEND", "triton") != "triton" or DRY_RUN, reason="counts starts of Triton kernels"
)
def test_the_kernels_are_what_runs(device):
    from amopo_kernels.triton.launch import LAUNCHES

    before = LAUNCHES.copy()
    Step(device).run(budget=2_000_000)
    started = {name for name, count in LAUNCHES.items() if count > before[name]}
    assert {"row_pass", "tile_pass", "mobt", "scale_rows", "expand_segments"} <= started


@pytest.mark.cuda_only
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("logits_dtype", [None, "input"])
@pytest.mark.parametrize("frozen", [False, True], ids=["full", "frozen"])
@pytest.mark.parametrize("budget", [64 << 20, 256 << 20, None], ids=["64MB", "256MB", "default"])
def test_the_allocator_sees_no_more_than_promised(device, dtype, logits_dtype, frozen, budget):
    rows, hidden_size, vocab = 1024, 512, 65_537
    case = make_case(device, dtype, rows, hidden_size, vocab)
    case.weight.requires_grad_(not frozen)
    upstream = case.upstream.float()
    promised = workspace_bytes(
        (rows, hidden_size, vocab), dtype, budget, frozen, logits_dtype=logits_dtype, device=device
    )
    # fill_uninitialized_memory takes no memory of its own, but cuBLAS takes its workspace on first use
    case.run(linear_logprobs, budget=budget, logits_dtype=logits_dtype)
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    logps = linear_logprobs(case.hidden, case.weight, case.targets, budget=budget, logits_dtype=logits_dtype)
    forward = torch.cuda.max_memory_allocated() - before
    torch.cuda.reset_peak_memory_stats()
    gradients = torch.autograd.grad(logps, case.leaves(), upstream)
    grad_weight = 0 if frozen else vocab * hidden_size * dtype.itemsize
    backward = torch.cuda.max_memory_allocated() - before - grad_weight
    assert len(gradients) == (1 if frozen else 2)
    assert max(forward, backward) <= 1.05 * promised, f"forward {forward}, backward {backward}, promised {promised}"


@pytest.mark.cuda_only
def test_padded_labels_on_the_device_wait_exactly_once(device):
    torch.use_deterministic_algorithms(False)
    rows, length = 2 * OBJECTIVES * SAMPLES, 9
    hidden = torch.randn(rows, length, HIDDEN, device=device, dtype=torch.bfloat16, requires_grad=True)
    weight = torch.randn(VOCAB, HIDDEN, device=device, dtype=torch.bfloat16, requires_grad=True)
    labels = torch.randint(0, VOCAB, (rows, length), device=device)
    labels[:, :3] = -100

    def step():
        result = fused_loss(hidden, weight, labels, num_objectives=OBJECTIVES, step=3)
        torch.autograd.grad(result.loss, (hidden, weight))

    step()
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("warn")
    try:
        with pytest.warns(UserWarning) as caught:
            step()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    waits = [str(w.message) for w in caught if "synchron" in str(w.message)]
    assert len(waits) == 1, waits
