"""Measured rounds, shown through pytest-benchmark on a clock of its own."""

from __future__ import annotations

import pytest

from bench.common.measure import REPLAY, Entrant


def replay(benchmark, entrant: Entrant) -> None:
    """Report an entrant's rounds, with case, device, versions, errors and bytes (`entrant.extra`) beside them.

    Fails the test if the entrant failed. The test needs `pytest.mark.benchmark(timer=REPLAY)`.
    """
    if entrant.problem is not None:
        pytest.fail(f"{entrant.name}: {entrant.problem}")
    times = iter(entrant.times)
    benchmark.extra_info.update({name: value for name, value in entrant.extra.items() if value is not None})
    benchmark.pedantic(lambda: REPLAY.advance(next(times, 0.0)), rounds=len(entrant.times), iterations=1)
