"""The race of all providers: who fails, who is wrong, who comes first, and that nothing is measured twice."""

from __future__ import annotations

import json

import pytest
import torch

from bench.common import baselines, head_race, ours  # noqa: F401  (some register providers)
from bench.common.cases import HeadShape
from bench.common.measure import Entrant
from bench.common.providers import PROVIDERS, NotMeasured, Outcome, Provider
from bench.common.replay import replay
from bench.common.results import load
from bench.common.session import RaceFailed, open_session

SHAPE = HeadShape("test", 16, 16, 97)
PRESENT = lambda case: None  # noqa: E731


def small_session(tmp_path):
    return open_session(device="cpu", full=False, dtype="fp32", shape=(), rounds=2, results=str(tmp_path))


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


def add(monkeypatch, name: str, build, role: str = "peer", **more) -> None:
    monkeypatch.setitem(PROVIDERS, name, Provider(name, role, "tokens", "", PRESENT, build, **more))


def raising_late(error: Exception, calls: int):
    """A provider that computes the right thing, and raises from its n-th call on."""

    def build(case, frozen):
        right, done = PROVIDERS["plain_torch"].build(case, frozen), []

        def run():
            done.append(1)
            if len(done) >= calls:
                raise error
            return right()

        return run

    return build


def test_a_peer_that_asserts_without_a_word_is_reported(tmp_path, monkeypatch):
    add(monkeypatch, "silent", raising_late(AssertionError(), 1))
    session = small_session(tmp_path)
    names = ["products", "silent"]
    entries = head_race.run_head_race(session, session.case(SHAPE, "flat"), False, names, "head_full")
    assert entries["silent"].problem == "failed: AssertionError()" and not entries["silent"].must_not_be_missing
    assert entries["products"].entrant.times


@pytest.mark.parametrize("role", ["peer", "ours"])
def test_a_failure_in_a_late_round_takes_out_one_provider(tmp_path, monkeypatch, role):
    add(monkeypatch, "late", raising_late(torch.OutOfMemoryError("no memory left"), 3), role)
    session = small_session(tmp_path)
    names = ["late", "products", "amopo_eager", "plain_torch"]
    entries = head_race.run_head_race(session, session.case(SHAPE, "flat"), False, names, "head_full")
    assert entries["late"].problem == "failed: OutOfMemoryError: no memory left"
    assert entries["late"].must_not_be_missing == (role == "ours")
    for name in names[1:]:
        assert entries[name].problem is None and len(entries[name].entrant.times) == 2
    records = records_of(tmp_path)
    assert records["late"]["skipped"] == entries["late"].problem and "stats" in records["plain_torch"]


def records_of(folder) -> dict[str, dict]:
    (path,) = folder.rglob("*.json")
    return {record["key"]["provider"]: record for record in load(path)["records"]}


def test_floor_and_ours_are_written_before_a_peer_is_built(tmp_path, monkeypatch):
    seen = {}

    def build(case, frozen):
        seen.update(records_of(tmp_path))
        raise KeyboardInterrupt

    add(monkeypatch, "slow_to_build", build)
    session = small_session(tmp_path)
    names = ["slow_to_build", "plain_torch", "amopo_eager", "products"]
    with pytest.raises(KeyboardInterrupt):
        head_race.run_head_race(session, session.case(SHAPE, "flat"), False, names, "head_full")
    assert set(seen) == {"amopo_eager", "products"}
    assert all(record["stats"]["rounds"] == 2 and record["info"]["tflops"] > 0 for record in seen.values())


def test_the_first_heat_stays_until_the_race_has_as_many_rounds(tmp_path, monkeypatch):
    add(monkeypatch, "stops", lambda case, frozen: stop_in_the_race)
    calls = []

    def stop_in_the_race():
        calls.append(1)
        if len(calls) == 3:  # the check, the first rotation, then this
            raise KeyboardInterrupt
        return Outcome(torch.zeros(SHAPE.rows), torch.zeros(SHAPE.rows, SHAPE.hidden))

    session = small_session(tmp_path)
    with pytest.raises(KeyboardInterrupt):
        head_race.run_head_race(session, session.case(SHAPE, "flat"), False, ["stops", "products"], "head_full")
    records = records_of(tmp_path)
    assert records["products"]["stats"]["rounds"] == 2 and records["stops"]["stats"]["rounds"] == 1


def test_a_case_that_says_nothing_about_a_provider_is_no_failure(tmp_path, monkeypatch):
    def build(case, frozen):
        raise NotMeasured("nothing to keep")

    add(monkeypatch, "pointless", build, "ours")
    session = small_session(tmp_path)
    names = ["pointless", "products"]
    entries = head_race.run_head_race(session, session.case(SHAPE, "flat"), True, names, "head_frozen")
    assert entries["pointless"].problem == "nothing to keep" and not entries["pointless"].must_not_be_missing


def test_what_is_compiled_has_its_memory_from_a_second_call(tmp_path, monkeypatch):
    calls = []

    def build(case, frozen):
        right = PROVIDERS["plain_torch"].build(case, frozen)
        held = []

        def run():
            calls.append(1)
            if len(calls) == 1:
                held.append(torch.ones(100 << 20, dtype=torch.int8))  # as a compiler does
            return right()

        return run

    add(monkeypatch, "compiled", build, compiled=True)
    session = small_session(tmp_path)
    _, info = head_race.check(PROVIDERS["compiled"], session.case(SHAPE, "flat"), False)
    assert len(calls) == 2 and info["resident_bytes"] < 50 << 20 and "peak_bytes" not in info


def test_a_race_is_run_once_whatever_order_its_tests_have(tmp_path):
    session, runs = small_session(tmp_path), []
    for key in ("a", "b", "a", "b"):
        assert session.race(key, lambda key=key: runs.append(key) or key.upper()) == key.upper()
    assert runs == ["a", "b"]


def test_a_failed_race_is_not_repeated(tmp_path):
    session, runs = small_session(tmp_path), []

    def run():
        runs.append(1)
        raise ValueError("broken")

    with pytest.raises(ValueError, match="broken"):
        session.race("key", run)
    for _ in range(2):
        with pytest.raises(RaceFailed, match="the race of key failed: ValueError: broken"):
            session.race("key", run)
    assert runs == [1]


class Benchmark:
    """What pytest-benchmark hands to a test, as far as `replay` uses it."""

    def __init__(self) -> None:
        self.extra_info, self.rounds = {}, 0

    def pedantic(self, function, rounds, iterations) -> None:
        self.rounds = rounds


def test_case_device_and_versions_stand_beside_the_times(tmp_path):
    session = small_session(tmp_path)
    names = ["products", "amopo_eager"]
    entries = head_race.run_head_race(session, session.case(SHAPE, "peaked"), False, names, "head_full")
    benchmark = Benchmark()
    replay(benchmark, entries["amopo_eager"].entrant)
    extra = benchmark.extra_info
    assert (extra["shape"], extra["dtype"], extra["inputs"]) == ("test-16x16x97", "float32", "peaked")
    assert extra["versions"]["torch"] == torch.__version__ and extra["device"] == extra["machine"]["device"]
    for name in ("tflops", "peak_bytes", "resident_bytes", "logp_error", "grad_hidden_error", "grad_weight_error"):
        assert name in extra, name
    assert benchmark.rounds == 2 and json.dumps(extra)


def test_a_problem_fails_the_replay(tmp_path):
    entrant = Entrant("a", None, problem="failed: here")
    with pytest.raises(pytest.fail.Exception, match="a: failed: here"):
        replay(Benchmark(), entrant)
