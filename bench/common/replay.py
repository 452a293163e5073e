"""Measured rounds, shown through pytest-benchmark on a clock of its own."""

from __future__ import annotations

from bench.common.measure import REPLAY, Entrant


def replay(benchmark, entrant: Entrant, info: dict) -> None:
    """Report an entrant's rounds, with `info` beside them. The test needs `pytest.mark.benchmark(timer=REPLAY)`."""
    times = iter(entrant.times)
    benchmark.extra_info.update({name: value for name, value in info.items() if value is not None})
    benchmark.pedantic(lambda: REPLAY.advance(next(times, 0.0)), rounds=len(entrant.times), iterations=1)
