"""What do the statistics of 64 sequences and the objective on top of them cost?

    stats     per-sequence sums, means, variances
    mobt      statistics, weights, loss and coefficients (B = 8, K = 4)
    step      `loss_from_logps` and its gradient with respect to the log-probs, metrics included

The latter two with the default weights, drawn by Philox ("gaussian"), and with weights that are not drawn ("mean").
On CUDA a call is also captured in a graph and replayed: that is the device's share, without the host between launches.
"""

from __future__ import annotations

import pytest
import torch

from amopo.fused_loss import loss_from_logps
from amopo.packing.layout import TreeLayout
from amopo_kernels import backend, reference, sequence_stats
from amopo_kernels.mobt_op import mobt
from bench.common.measure import REPLAY, Entrant, message_of, race, run_for_memory
from bench.common.providers import backend_missing, using_backend
from bench.common.replay import replay

pytestmark = pytest.mark.benchmark(timer=REPLAY)
QUESTION = "objective"
SAMPLES, OBJECTIVES = 8, 4
PARTS = ("stats", "mobt_gaussian", "mobt_mean", "step_gaussian", "step_mean")
SEED, STEP = 20240917, 1
OPTIONS = {"beta": 0.8, "gamma": 0.3, "pooled": "union"}


class Batch:
    """Token log-probs of 64 sequences of 128 to 600 tokens, of which 1 in 20 is hopeless and half are confident."""

    def __init__(self, device: torch.device) -> None:
        generator = torch.Generator().manual_seed(0)
        lengths = torch.randint(128, 601, (SAMPLES * OBJECTIVES * 2,), generator=generator)
        self.offsets = torch.cat([torch.zeros(1, dtype=torch.int64), lengths.cumsum(0)])
        count = int(self.offsets[-1])
        scale = torch.where(torch.rand(count, generator=generator) < 0.5, 0.05, 2.0)
        self.logps = -torch.empty(count).exponential_(generator=generator) * scale
        edges = self.offsets
        self.layout = TreeLayout(
            SAMPLES, OBJECTIVES, torch.arange(count), torch.zeros(count, dtype=torch.int64), None, edges, 0, count,
        ).to(device)  # fmt: skip
        self.device_logps = self.logps.to(device)
        self.ids, self.step = torch.arange(SAMPLES, device=device), torch.full((), STEP, device=device)

    def function(self, part: str):
        layout = self.layout
        edges = layout.offsets
        starts, stops = (e.view(SAMPLES, OBJECTIVES, 2).contiguous() for e in (edges[:-1], edges[1:]))
        if part == "stats":
            return lambda: sequence_stats(self.device_logps, edges)
        part, weights = part.split("_")
        options = {**OPTIONS, "weights": weights, "sample_ids": self.ids, "seed": SEED}
        if part == "mobt":
            return lambda: mobt(self.device_logps, starts, stops, step=self.step, **options)

        def step():
            logps = self.device_logps.detach().requires_grad_()
            result = loss_from_logps(logps, layout, step=STEP, **options)
            return result, torch.autograd.grad(result.loss, logps)[0]

        return step

    def exact(self, weights: str) -> tuple[torch.Tensor, torch.Tensor]:
        """Per-sample losses and the gradient of their mean, from the specification in fp64; its noise too."""
        logps = self.logps.double().requires_grad_()
        tokens = [logps[a:b] for a, b in zip(self.offsets[:-1].tolist(), self.offsets[1:].tolist(), strict=True)]
        losses = []
        for b in range(SAMPLES):
            mine = tokens[b * OBJECTIVES * 2 : (b + 1) * OBJECTIVES * 2]
            mu, sigma = reference.weight_distribution(mine[0::2], mine[1::2], pooled="union")
            noise = [reference.gaussian_noise(SEED, STEP, b, k)[0] for k in range(OBJECTIVES)]
            alpha = torch.softmax(mu + (sigma * mu.new_tensor(noise) if weights == "gaussian" else 0.0), 0)
            losses.append(reference.amopo_sample_loss(mine[0::2], mine[1::2], alpha, beta=0.8, gamma=0.3))
        losses = torch.stack(losses)
        return losses.detach(), torch.autograd.grad(losses.mean(), logps)[0]


def _error(part: str, batch: Batch, result) -> float:
    if part == "stats":
        exact = reference.sequence_stats(batch.logps.double(), batch.offsets)[0]
        return float(((result.sum_logp.detach().double().cpu() - exact) / exact).abs().max())
    part, weights = part.split("_")
    losses, gradient = batch.exact(weights)
    if part == "mobt":
        return float(((result.losses.detach().double().cpu() - losses) / losses).abs().max())
    return float((result[1].double().cpu() - gradient).norm() / gradient.norm())


def _captured(function, device: torch.device):
    """The function as a replayed CUDA graph."""
    stream = torch.cuda.Stream(device)
    stream.wait_stream(torch.cuda.current_stream(device))
    with torch.cuda.stream(stream):
        for _ in range(3):
            function()
    torch.cuda.current_stream(device).wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        kept = function()
    return lambda: (graph.replay(), kept)[0]


def _race(session, part):
    batch, device = Batch(session.device), session.device
    entrants, infos, problems = {}, {}, {}
    for name in backend.BACKENDS:
        problem = backend_missing(name, device)
        if problem:
            problems[name] = problem
            continue
        plain = batch.function(part)

        def function(plain=plain, name=name):
            with using_backend(name):
                return plain()

        function()
        result, memory = run_for_memory(function, device)
        error = _error(part, batch, result)
        del result
        assert error < 1e-4, f"{name}, {part}: relative error {error}"
        entrants[name] = Entrant(name, function)
        infos[name] = {
            "relative_error": error,
            "sequences": SAMPLES * OBJECTIVES * 2,
            "tokens": len(batch.logps),
            **memory,
        }
        if device.type == "cuda":
            try:
                entrants[f"{name}_graph"] = Entrant(f"{name}_graph", _captured(function, device))
                # a graph's memory is a pool of its own, taken before it is replayed
                infos[f"{name}_graph"] = {key: value for key, value in infos[name].items() if key not in memory}
            except RuntimeError as stopped:
                problems[f"{name}_graph"] = f"failed: {message_of(stopped)}"
        else:
            problems[f"{name}_graph"] = "graphs are CUDA's"
    effort = session.effort() | ({"min_rounds": 50, "max_rounds": 200} if session.full else {})
    race(list(entrants.values()), device, **effort)
    for name in (*entrants, *problems):
        key = {"part": part, "provider": name, "sequences": 64, "small": not session.full}
        if name in problems:
            session.recorder.put(QUESTION, key, skipped=problems[name])
            continue
        session.record(QUESTION, key, entrants[name], infos[name])
        entrants[name].release()
    return entrants, problems


@pytest.mark.parametrize("how", [name + end for name in backend.BACKENDS for end in ("", "_graph")])
@pytest.mark.parametrize("part", PARTS)
def test_objective(benchmark, bench_session, part, how):
    entrants, problems = bench_session.race((QUESTION, part), lambda: _race(bench_session, part))
    if how not in entrants:
        pytest.skip(f"{how}: {problems.get(how) or problems[how.removesuffix('_graph')]}")
    benchmark.group = f"{QUESTION} {part}"
    replay(benchmark, entrants[how])
