"""How fast is the head, forward and backward, with a trained weight and with a frozen one?

The ratio that counts is the one to the floor: the bare matrix products over all rows at once. Every provider gets the
same compacted rows and is checked against fp64 before its rounds; errors and memory stand beside the times.
"""

from __future__ import annotations

import pytest

from bench.common.cases import INPUTS
from bench.common.head_race import run_head_race
from bench.common.measure import REPLAY
from bench.common.replay import replay

pytestmark = pytest.mark.benchmark(timer=REPLAY)


def _report(benchmark, session, request, shape, inputs, provider, frozen, question):
    selected = [
        item.callspec.params["provider"]
        for item in request.session.items
        if item.originalname == request.node.originalname
        and (item.callspec.params["shape"], item.callspec.params["inputs"]) == (shape, inputs)
    ]
    entries = session.race(
        (question, shape, inputs),
        lambda: run_head_race(session, session.case(shape, inputs), frozen, selected, question),
    )
    entry = entries[provider]
    if entry.must_not_be_missing:
        pytest.fail(f"{provider}: {entry.problem}")
    if entry.problem is not None:
        pytest.skip(f"{provider}: {entry.problem}")
    benchmark.group = f"{question} {shape} {inputs}"
    replay(benchmark, entry.entrant)
    if entry.provider.role == "ours":
        assert not entry.info["over_limit"], f"{provider} is wrong: {entry.info}"


@pytest.mark.parametrize("inputs", INPUTS, scope="session")
def test_full(benchmark, bench_session, request, shape, inputs, provider):
    _report(benchmark, bench_session, request, shape, inputs, provider, False, "head_full")


@pytest.mark.parametrize("inputs", INPUTS, scope="session")
def test_frozen(benchmark, bench_session, request, shape, inputs, provider):
    _report(benchmark, bench_session, request, shape, inputs, provider, True, "head_frozen")
