"""`amopo demo --seeds` and `--study`: what it writes, what it refuses, when it fails."""

from __future__ import annotations

import json

import pytest

from amopo.study import settings as study_settings
from amopo.study import tasks
from amopo.study.base import Check

TINY = {
    "model": "scratch:nano",
    "train_prompts": 30,
    "eval_prompts": 5,
    "plain_draws": 1,
    "template_draws": 1,
    "imitation_epochs": 1.0,
    "steps": 1,
    "batches_per_step": 1,
    "warmup_steps": 0,
    "learning_rate": 1e-3,
    "max_new_tokens": 3,
}


@pytest.fixture
def tiny(monkeypatch):
    monkeypatch.setattr(study_settings, "QUICK_TASKS", study_settings.TaskSettings(**TINY))


def test_a_study_writes_tables_pictures_and_a_record_and_fails_if_a_check_does(amopo, tiny, tmp_path, monkeypatch):
    out = tmp_path / "study"
    argv = ["demo", "--seeds", "1", "--quick", "--out", out]
    outcome = amopo(*argv)
    # Nobody learns anything in one step, so nothing rises by 10 %.
    assert outcome.status == 1 and "checks do not hold" in outcome.one_line()
    assert "DOES NOT HOLD: AMoPO, gaussian weights: mean score" in outcome.out
    record = json.loads((out / "study.json").read_text())
    assert record["command"] == "amopo demo --seeds 1 --quick" and record["seeds"] == [1]
    assert record["settings"]["train_prompts"] == 30 and record["versions"]["torch"] and record["machine"]["processor"]
    assert [check["holds"] for check in record["checks"]].count(False) >= 3
    assert set(record["summary"]["controllability"]) == {"start", "gaussian", "mean", "uniform", "simpo", "placebo"}
    text = (out / "study.md").read_text()
    assert "### Drawn answers, plain prompt" in text and "| SimPO, overall pair " in text and text in outcome.out
    for name in ("scores", "control", "margins"):
        assert (out / f"{name}.svg").read_text().startswith("<?xml")
    # The results are there, so a second call only reads them; with checks that hold it ends well.
    monkeypatch.setattr(tasks.TaskStudy, "checks", lambda self, found: [Check("two and two are four", True)])
    again = amopo(*argv)
    assert again.status == 0 and again.err == ""
    assert "6 of 6 results are there already" in again.out and "holds: two and two are four" in again.out
    assert json.loads((out / "study.json").read_text())["summary"] == record["summary"]


def test_other_settings_in_the_same_folder_are_refused(amopo, tiny, tmp_path, monkeypatch):
    out = tmp_path / "study"
    amopo("demo", "--seeds=1", "--quick", "--out", out)
    monkeypatch.setattr(study_settings, "QUICK_TASKS", study_settings.TaskSettings(**{**TINY, "beta": 1.0}))
    outcome = amopo("demo", "--seeds=1", "--quick", "--out", out)
    assert outcome.status == 2 and "was made with beta=2.0, this study has beta=1.0" in outcome.one_line()


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--seeds=0"], "--seeds: at least one seed is needed, not 0"),
        (["--seeds=3", "--seed=1"], "--seed is for a single demo"),
        (["--study=sumeval"], "--study: 'sumeval' is not one of tasks, summeval; did you mean summeval?"),
        (["--study=summeval"], "--study summeval needs --data FILE"),
        (["--study=summeval", "--data=nowhere.jsonl"], "--data: nowhere.jsonl is not a file"),
        (["--data=nowhere.jsonl"], "the study on tasks generates its data"),
    ],
)
def test_what_makes_no_study_is_refused_in_one_line(amopo, tmp_path, monkeypatch, argv, message):
    monkeypatch.chdir(tmp_path)
    outcome = amopo("demo", *argv)
    assert outcome.status == 2 and message in outcome.one_line()
    assert not list(tmp_path.iterdir())
