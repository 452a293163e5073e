"""Does the head stay within its byte budget, and what does a small budget cost in time?

Budgets from 64 MB up. Peaks are taken in the forward and, less dW, in the backward, and compared with
`workspace_bytes`: beyond 5 % more the benchmark fails. The bare products run in the same race. Whole models stand in
`bench/test_memory.py`.
"""

from __future__ import annotations

import pytest
import torch

from amopo_kernels import backend, linear_logprobs, workspace_bytes
from bench.common.cases import HeadCase
from bench.common.measure import REPLAY, AllocationWatch, Entrant, ResidentSet, race, run_for_memory
from bench.common.providers import PROVIDERS as HEAD_PROVIDERS
from bench.common.replay import replay

pytestmark = pytest.mark.benchmark(timer=REPLAY)
QUESTION = "memory"
MB = 1 << 20
BUDGETS = {"64MB": 64 * MB, "128MB": 128 * MB, "256MB": 256 * MB, "512MB": 512 * MB, "1GB": 1024 * MB, "default": None}
SMALL = 256  # small shapes divide budgets by this


def phase_peaks(case: HeadCase, frozen: bool, budget: int | None) -> dict[str, int]:
    """Peak bytes of the forward, and of the backward less the returned dW."""
    hidden, weight = case.leaves(frozen)
    leaves = (hidden,) if frozen else (hidden, weight)
    upstream, device = case.upstream, case.device
    grad_weight = 0 if frozen else weight.numel() * weight.element_size()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        before = torch.cuda.memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)
        logps = linear_logprobs(hidden, weight, case.targets, budget=budget)
        forward = torch.cuda.max_memory_allocated(device) - before
        torch.cuda.reset_peak_memory_stats(device)
        grads = torch.autograd.grad(logps, leaves, upstream)
        backward = torch.cuda.max_memory_allocated(device) - before
        del grads
        return {"forward_bytes": forward, "backward_bytes": backward - grad_weight}
    with ResidentSet() as resident:
        with AllocationWatch() as watch:
            logps = linear_logprobs(hidden, weight, case.targets, budget=budget)
            forward, watch.peak = watch.peak, watch.live
            grads = torch.autograd.grad(logps, leaves, upstream)
        backward = watch.peak
    del grads
    return {"forward_bytes": forward, "backward_bytes": backward - grad_weight, "resident_bytes": resident.peak}


def _race(session, shape, frozen):
    case = session.case(shape, "peaked")
    entrants, infos = {}, {}
    # the faster of the two floors, by what this machine has units for
    floor = "products" if HEAD_PROVIDERS["products_fp32"].missing(case) else "products_fp32"
    entrants["floor"] = Entrant("floor", HEAD_PROVIDERS[floor].build(case, frozen))
    _, memory = run_for_memory(entrants["floor"].function, case.device)
    infos["floor"] = {"role": "floor", "settings": floor, "frozen": frozen, **memory}
    for name, budget in BUDGETS.items():
        budget = budget if session.full or budget is None else budget // SMALL

        def function(budget=budget):
            hidden, weight = case.leaves(frozen)
            logps = linear_logprobs(hidden, weight, case.targets, budget=budget)
            return torch.autograd.grad(logps, (hidden,) if frozen else (hidden, weight), case.upstream)

        function()
        sizes = (shape.rows, shape.hidden, shape.vocab)
        promised = workspace_bytes(sizes, case.dtype, budget, frozen, device=case.device)
        peaks = phase_peaks(case, frozen, budget)
        entrants[name] = Entrant(name, function)
        infos[name] = {
            "budget_bytes": budget, "workspace_bytes": promised, **peaks, "frozen": frozen,
            "of_workspace": max(peaks["forward_bytes"], peaks["backward_bytes"]) / promised,
            "backend": backend.choose("row_pass", case.device.type)[0],
        }  # fmt: skip
    race(list(entrants.values()), case.device, **session.effort())
    for name, entrant in entrants.items():
        if entrant.problem is None and entrants["floor"].problem is None:
            infos[name]["of_floor"] = entrant.stats()["median"] / entrants["floor"].stats()["median"]
        session.record(QUESTION, session.key(case, provider=name, frozen=frozen), entrant, infos[name])
        entrant.release()
    case.cache.pop("g", None)
    return entrants, infos


@pytest.mark.parametrize("budget", [*BUDGETS, "floor"])
@pytest.mark.parametrize("frozen", [False, True], ids=["full", "frozen"])
def test_memory(benchmark, bench_session, shape, frozen, budget):
    entrants, infos = bench_session.race((QUESTION, shape, frozen), lambda: _race(bench_session, shape, frozen))
    benchmark.group = f"{QUESTION} {shape} {'frozen' if frozen else 'full'}"
    replay(benchmark, entrants[budget])
    assert infos[budget].get("of_workspace", 0.0) <= 1.05, infos[budget]
