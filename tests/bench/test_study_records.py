"""The committed studies against today's code: the same settings, the same tasks, the same methods."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from amopo.study.methods import METHODS, START
from amopo.study.record import fingerprint, methods_of, settings_of
from amopo.study.settings import SUMMEVAL, TASKS
from amopo.study.summeval import SummevalStudy
from amopo.study.tasks import TaskStudy

ROOT = Path(__file__).resolve().parents[2]
RATED = Path(os.environ.get("AMOPO_DATA") or ROOT.parent / "shared" / "data") / "summeval" / "grouped.jsonl"


def committed(name: str) -> dict:
    return json.loads((ROOT / "bench" / "results" / "study" / f"{name}.json").read_text(encoding="utf-8"))


def check(record: dict, study, *, data: bool = True) -> None:
    """Every field that the record has; those from before a field existed lack it."""
    today = json.loads(json.dumps(settings_of(study)))
    if not data:
        record["settings"].pop("data")
        today.pop("data")
    assert record["settings"] == today
    assert list(record["cpu_seconds"]) == [START, *(method.name for method in METHODS)]
    if "methods" in record:
        assert record["methods"] == methods_of(METHODS)
    if "fingerprint" in record and data:
        assert record["fingerprint"] == fingerprint(study)


def test_the_study_on_tasks_is_of_todays_generator_and_settings():
    record = committed("tasks")
    assert record["command"] == "amopo demo --seeds 3" and record["seeds"] == [1, 2, 3]
    assert "generator" in record["settings"]
    check(record, TaskStudy(TASKS))


def test_the_study_on_summaries_is_of_todays_settings_and_data(tmp_path):
    (tmp_path / "absent.jsonl").write_text("")
    has_data = RATED.is_file()
    check(
        committed("summeval"), SummevalStudy(SUMMEVAL, RATED if has_data else tmp_path / "absent.jsonl"), data=has_data
    )


def test_a_changed_setting_or_task_shows(monkeypatch):
    for change in ({"steps": 51}, {"learning_rate": 1e-4}, {"max_new_tokens": 47}):
        with pytest.raises(AssertionError):
            check(committed("tasks"), TaskStudy(type(TASKS)(**{**vars(TASKS), **change})))
    monkeypatch.setattr("amopo.data.verifiable.files.score_response", lambda task, text: {"correctness": 0})
    with pytest.raises(AssertionError):
        check(committed("tasks"), TaskStudy(TASKS))
