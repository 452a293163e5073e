"""How the benchmarks measure: rotation, memory peaks, failing peers, results that survive."""

from __future__ import annotations

import json

import pytest
import torch

from bench.common import baselines, head_race, measure, ours  # noqa: F401  (some register providers)
from bench.common.cases import HeadShape
from bench.common.providers import PROVIDERS, Outcome, Provider
from bench.common.results import Recorder, load
from bench.common.session import open_session

CPU = torch.device("cpu")
SHAPE = HeadShape("test", 16, 16, 97)


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


def small_session(tmp_path):
    return open_session(device="cpu", full=False, dtype="fp32", shape="", rounds=2, results=str(tmp_path))


@pytest.fixture
def strange_peers(monkeypatch):
    def build(case, frozen):
        def fail():
            raise RuntimeError("out of order\nsecond line")

        return fail

    def build_wrong(case, frozen):
        right = PROVIDERS["plain_torch"].build(case, frozen)
        return lambda: Outcome(right().value, *(2.0 * g for g in (right().grad_hidden, right().grad_weight)))

    present = lambda case: None  # noqa: E731
    for name, made, missing in (
        ("failing", build, present), ("wrong", build_wrong, present), ("absent", build, lambda case: "not installed"),
    ):  # fmt: skip
        monkeypatch.setitem(PROVIDERS, name, Provider(name, "peer", "tokens", "", missing, made))


def test_failing_wrong_and_absent_peers_are_reported(tmp_path, strange_peers):
    session = small_session(tmp_path)
    case = session.case(SHAPE, "peaked")
    names = ["products", "amopo_eager", "failing", "wrong", "absent"]
    entries = head_race.run_head_race(session, case, False, names, "head_full")
    assert entries["failing"].problem == "failed: RuntimeError: out of order"
    assert entries["absent"].problem == "not installed"
    assert entries["wrong"].info["over_limit"] == ["grad_hidden_error", "grad_weight_error"]
    assert len(entries["amopo_eager"].entrant.times) == 2 and entries["amopo_eager"].info["over_limit"] == []
    (path,) = tmp_path.rglob("*.json")
    records = {record["key"]["provider"]: record for record in load(path)["records"]}
    assert records["failing"]["skipped"].startswith("failed") and records["absent"]["skipped"] == "not installed"
    assert records["wrong"]["info"]["over_limit"] and records["amopo_eager"]["stats"]["rounds"] == 2
    assert "times" not in json.dumps(records)


def test_a_failure_of_ours_fails_its_benchmark_and_no_other(tmp_path, monkeypatch):
    def build(case, frozen):
        raise RuntimeError("ours")

    monkeypatch.setitem(PROVIDERS, "mine", Provider("mine", "ours", "tokens", "", lambda case: None, build))
    session = small_session(tmp_path)
    names = ["mine", "products"]
    entries = head_race.run_head_race(session, session.case(SHAPE, "flat"), False, names, "head_full")
    assert entries["mine"].must_not_be_missing and entries["mine"].problem == "failed: RuntimeError: ours"
    assert entries["products"].entrant.times


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
