"""What does it gain that only response rows enter the head?

A batch of N rows of which a share belongs to prompts or padding: the head over all rows with a zero upstream gradient
for the masked ones (what losses over padded batches do), against the head over the response rows, gathered first.
"""

from __future__ import annotations

import pytest
import torch

from amopo_kernels import backend, linear_logprobs
from bench.common.measure import REPLAY, Entrant, race, run_for_memory
from bench.common.replay import replay
from bench.common.truth import relative_error

pytestmark = pytest.mark.benchmark(timer=REPLAY)
QUESTION = "compaction"
MASKED = (0.5, 0.75)


def _race(session, shape, masked):
    case = session.case(shape, "peaked")
    kept = torch.arange(0, shape.rows, round(1 / (1 - masked)), device=case.device)
    upstream = torch.zeros_like(case.upstream).index_copy_(0, kept, case.upstream[kept])

    def all_rows():
        hidden, weight = case.leaves(False)
        logps = linear_logprobs(hidden, weight, case.targets)
        return torch.autograd.grad(logps, (hidden, weight), upstream)

    def compacted():
        hidden, weight = case.leaves(False)
        logps = linear_logprobs(hidden.index_select(0, kept), weight, case.targets[kept])
        return torch.autograd.grad(logps, (hidden, weight), upstream[kept])

    entrants, infos, results = {}, {}, {}
    for name, function in (("all_rows", all_rows), ("compacted", compacted)):
        results[name], memory = run_for_memory(function, case.device)
        entrants[name] = Entrant(name, function)
        infos[name] = {
            "masked": masked, "rows_in_head": shape.rows if name == "all_rows" else len(kept),
            "backend": backend.choose("row_pass", case.device.type)[0], **memory,
        }  # fmt: skip
    for ours, exact in zip(results["compacted"], results["all_rows"], strict=True):
        assert relative_error(ours, exact.double()) < 2e-2, "compacted rows give another gradient"
    results.clear()
    race(list(entrants.values()), case.device, **session.effort())
    for name, entrant in entrants.items():
        session.record(QUESTION, session.key(case, provider=name, masked=masked), entrant, infos[name])
        entrant.release()
    return entrants


@pytest.mark.parametrize("rows", ["all_rows", "compacted"])
@pytest.mark.parametrize("masked", MASKED)
def test_compaction(benchmark, bench_session, shape, masked, rows):
    entrants = bench_session.race((QUESTION, shape, masked), lambda: _race(bench_session, shape, masked))
    benchmark.group = f"{QUESTION} {shape} {masked:.0%} masked"
    replay(benchmark, entrants[rows])
