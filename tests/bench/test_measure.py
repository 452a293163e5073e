"""How the benchmarks measure: rotation, memory peaks, failures in the middle, results that survive."""

from __future__ import annotations

import pytest
import torch

from bench.common import measure
from bench.common.results import Recorder, load

CPU = torch.device("cpu")


def test_rounds_rotate():
    order = []
    entrants = [measure.Entrant(name, lambda name=name: order.append(name)) for name in "abc"]
    measure.race(entrants, CPU, seconds=0.0, min_rounds=3, max_rounds=3)
    assert "".join(order) == "abcbcacab" and [len(e.times) for e in entrants] == [3, 3, 3]


def test_setup_is_not_on_the_clock_and_runs_every_round(monkeypatch):
    clock = iter(range(100))
    monkeypatch.setattr(measure.time, "perf_counter", lambda: next(clock))
    setups = []
    entrant = measure.Entrant("a", lambda: None, lambda: setups.append(next(clock)))
    measure.race([entrant], CPU, seconds=0.0, min_rounds=2, max_rounds=2)
    assert entrant.times == [1, 1] and len(setups) == 2


def test_peak_counts_what_lives_at_once():
    given = torch.zeros(1000)

    def function():
        first = given + 1.0
        second = first + 1.0
        del first
        return second + given[:1000]

    result, memory = measure.run_for_memory(function, CPU)
    assert memory["peak_bytes"] == 8000 and result.shape == (1000,)


def test_peak_looks_inside_our_operators():
    from amopo_kernels import linear_logprobs

    hidden, weight = torch.randn(64, 8), torch.randn(1000, 8, requires_grad=True)
    _, memory = measure.run_for_memory(lambda: linear_logprobs(hidden, weight, torch.zeros(64).long()), CPU)
    assert memory["peak_bytes"] >= 64 * 1000 * 4  # kept G


def test_statistics_of_rounds():
    stats = measure.Entrant("a", lambda: None, times=[3.0, 1.0, 2.0]).stats()
    assert (stats["median"], stats["min"], stats["max"], stats["rounds"]) == (2.0, 1.0, 3.0, 3)


class Raising:
    """Raises in its third call."""

    def __init__(self, error: Exception) -> None:
        self.error, self.calls = error, 0

    def __call__(self) -> None:
        self.calls += 1
        if self.calls == 3:
            raise self.error


def test_who_raises_in_a_late_round_is_out_and_the_others_go_on():
    raising = Raising(AssertionError())
    entrants = [measure.Entrant("a", lambda: None), measure.Entrant("b", raising)]
    measure.race(entrants, CPU, seconds=0.0, min_rounds=5, max_rounds=5)
    assert len(entrants[0].times) == 5 and entrants[0].problem is None
    assert entrants[1].problem == "failed: AssertionError()" and entrants[1].times == [] and raising.calls == 3
    assert entrants[1].function is None


@pytest.mark.parametrize(
    "error, said",
    [
        (AssertionError(), "AssertionError()"), (RuntimeError(" \n "), "RuntimeError(' \\n ')"),
        (ValueError("first\nsecond"), "ValueError: first"), (KeyError("k"), "KeyError: 'k'"),
    ],
)  # fmt: skip
def test_every_exception_has_a_message(error, said):
    assert measure.message_of(error) == said


def test_cycles_of_a_race_are_collected_between_its_rotations():
    alive = []

    class Cycle:
        def __init__(self) -> None:
            self.self = self

    def function():
        alive.append(measure.weakref.ref(Cycle()))

    left = []
    count = lambda: left.append(sum(ref() is not None for ref in alive))  # noqa: E731
    measure.race([measure.Entrant("a", function)], CPU, seconds=0.0, min_rounds=4, max_rounds=4, after_rotation=count)
    assert left == [1, 1, 1, 1] and measure.gc.isenabled() and measure.gc.get_freeze_count() == 0


def test_records_replace_those_of_the_same_key_and_drop_empty_runs(tmp_path):
    first = Recorder(tmp_path, "machine", {"date": "1"})
    first.put("q", {"provider": "a"}, stats={"median": 1.0})
    first.put("q", {"provider": "b"}, stats={"median": 2.0, "odd": float("inf")})
    second = Recorder(tmp_path, "machine", {"date": "2"})
    second.put("q", {"provider": "a"}, stats={"median": 3.0})
    data = load(tmp_path / "machine" / "q.json")
    kept = [(r["key"]["provider"], r["run"], r["stats"]["median"]) for r in data["records"]]
    assert kept == [("b", 0, 2.0), ("a", 1, 3.0)]
    second.put("q", {"provider": "b"}, skipped="gone")
    data = load(tmp_path / "machine" / "q.json")
    assert data["runs"] == [{"date": "2"}] and data["records"][1]["skipped"] == "gone"


def test_a_broken_result_file_is_named(tmp_path):
    path = tmp_path / "q.json"
    path.write_text("{")
    with pytest.raises(ValueError, match=r"q\.json is not JSON"):
        load(path)
    path.write_text("{}")
    with pytest.raises(ValueError, match=r"q\.json is no benchmark result"):
        load(path)
