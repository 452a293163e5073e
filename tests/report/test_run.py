"""A run is read from what it left behind, whole or not, and what is wrong with it is said."""

from __future__ import annotations

import json
import math

import pytest

from amopo.report.run import load_runs
from amopo.report.sources import RunError
from tests.report.run_files import (
    OBJECTIVES,
    metrics,
    rows,
    training_row,
    with_scores,
    write_json,
    write_log,
    write_run,
)


def load(path):
    return load_runs([path])[0]


def test_a_finished_run_gives_every_number_that_it_logged(tmp_path):
    run = load(write_run(tmp_path / "one"))
    assert (run.name, run.objectives, run.status) == ("one", OBJECTIVES, "finished at step 24")
    series = run.series("rewards/margins/brevity")
    assert series.steps == list(range(2, 25, 2))
    assert series.values == pytest.approx([0.2 + 0.02 * step for step in series.steps])
    assert run.versions["torch"] == "2.13.0" and run.settings["beta"] == 0.8
    assert [(sample.before, sample.after) for sample in run.samples] == [("uh", "Hello.")]
    accuracy = run.sections[0]
    assert (accuracy.title, accuracy.changes[0].before, accuracy.changes[0].after) == (
        "held-out pairs: accuracy",
        0.25,
        0.75,
    )
    assert run.notes == [] and run.absent == ["generated scores: measured by amopo demo only"]


def test_evaluations_begin_with_the_one_before_training(tmp_path):
    found = metrics()
    found["log_history"] += [{"step": 24, "eval_loss": 0.5, "eval_rewards/margins/tone": 0.9}]
    held_out = load(write_run(tmp_path, found)).held_out("rewards/margins/tone")
    assert (held_out.steps, held_out.values) == ([0, 24], [0.25, 0.9])


def test_evaluations_of_named_datasets_are_said_and_hide_nothing(tmp_path):
    found = metrics()
    found["log_history"] += [
        {"step": 24, "eval_rewards/margins/tone": 0.9},
        {"step": 24, "eval_easy_rewards/margins": 0.4, "eval_easy_loss": 0.5},
    ]
    run = load(write_run(tmp_path, found))
    assert run.held_out("rewards/margins/tone").values == [0.25, 0.9]
    assert run.notes == ["evaluations of named datasets are not drawn: easy"]


def test_a_stopped_run_is_read_from_the_log_that_it_wrote(tmp_path):
    before = metrics()["preferences"]["before"]
    write_run(tmp_path, metrics(finished=False, log_history=None, preferences={"before": before}, samples=None))
    write_log(tmp_path / "amopo_log.jsonl", rows(5))
    run = load(tmp_path)
    assert run.status == "stopped after step 10 of 24" and len(run.training) == 5
    assert run.held_out("rewards/margins/tone").values == [0.25]
    assert run.sections == [] and any("the run did not finish" in text for text in run.absent)


def test_half_a_line_at_the_end_of_a_log_is_left_out_and_said(tmp_path):
    write_log(tmp_path / "amopo_log.jsonl", rows(5), tail='{"step": 12, "lo')
    run = load(tmp_path)
    assert len(run.training) == 5
    [note] = run.notes
    assert "left out 1 of 6 lines" in note and ": 6 (the run was stopped while it wrote)" in note


def test_broken_lines_within_a_log_are_named(tmp_path):
    lines = [json.dumps(row) for row in rows(4)]
    lines[1:1] = ["not json", "[1, 2]"]
    (tmp_path / "amopo_log.jsonl").write_bytes(("\n".join(lines) + "\n").encode() + b'\xff{"step": 99}\n')
    run = load(tmp_path)
    assert [row["step"] for row in run.training] == [2, 4, 6, 8]
    assert "left out 3 of 7 lines that are not JSON: 2, 3, 7" in run.notes[0]


def test_a_python_trainers_folder_is_enough(tmp_path):
    """Log and run record, without metrics.json; objectives come from either."""
    write_log(tmp_path / "a" / "amopo_log.jsonl", rows(3))
    write_log(tmp_path / "b" / "amopo_log.jsonl", rows(3))
    write_json(tmp_path / "b" / "amopo_run.json", {"settings": {"objectives": ["tone"]}, "versions": {"torch": "2"}})
    alone, recorded = load_runs([tmp_path / "a", tmp_path / "b"])
    assert alone.objectives == OBJECTIVES and recorded.objectives == ["tone"]
    assert recorded.versions == {"torch": "2"} and any("settings" in text for text in alone.absent)


def test_the_newest_checkpoint_speaks_for_a_run_without_a_log(tmp_path):
    for step, count in ((4, 2), (10, 5)):
        state = {"log_history": rows(count), "max_steps": 40}
        write_json(tmp_path / f"checkpoint-{step}" / "trainer_state.json", state)
    run = load(tmp_path)
    assert run.status == "stopped after step 10 of 40"
    assert load(tmp_path / "checkpoint-4").status == "stopped after step 4 of 40"


def test_a_step_that_was_logged_twice_counts_once(tmp_path):
    twice = [*rows(4), training_row(4, OBJECTIVES, shift=1.0)]
    run = load(write_log(tmp_path / "amopo_log.jsonl", twice))
    assert run.series("loss").steps == [2, 4, 6, 8]
    assert run.series("rewards/margins/correctness").values[1] == pytest.approx(0.1 + 0.02 * 4 + 1.0)


def test_rows_without_a_step_are_left_out_and_said(tmp_path):
    run = load(write_log(tmp_path / "amopo_log.jsonl", [*rows(2), {"loss": 1.0}, {"loss": 1.0, "step": "nan"}]))
    assert len(run.training) == 2 and "left out 2 logged rows that name no step" in run.notes


@pytest.mark.parametrize("bad", [math.nan, "nan", "inf", "-Infinity"])
def test_what_is_not_finite_is_a_gap_and_is_said(tmp_path, bad):
    """As JSON's NaN, which trainer_state.json holds, and as text, which the other files hold."""
    logged = rows(6)
    logged[3]["loss"] = logged[4]["loss"] = logged[4]["rewards/margins/tone"] = bad
    run = load(write_log(tmp_path / "amopo_log.jsonl", logged))
    values = run.series("loss").values
    assert [math.isnan(value) for value in values] == [False, False, False, True, True, False]
    [note] = run.notes
    assert "from step 8: loss, rewards/margins/tone" in note and "learning rate" in note


def test_an_empty_log_is_a_run_without_curves(tmp_path):
    run = load(write_log(tmp_path / "amopo_log.jsonl", []))
    assert run.training == [] and run.status == "nothing logged"
    assert any("no training step was logged" in text for text in run.absent)


def test_generated_scores_need_both_ends(tmp_path):
    found = with_scores(metrics(), {"tone": (1.0, 2.0), "mean": (1.5, 2.5)})
    del found["generation"]["after"]["drawn"]["plain"]["tone"]
    run = load(write_run(tmp_path, found))
    assert set(run.scores) == {"mean"} and run.scores["mean"].after == 2.5


@pytest.mark.parametrize(
    ("name", "text", "problem"),
    [
        ("metrics.json", "", "not JSON (empty)"),
        ("metrics.json", '{"log_history": [}', "not JSON (Expecting value, line 1)"),
        ("metrics.json", "[]", "holds a list instead of a JSON object"),
        ("metrics.json", '{"log_history": {"loss": 1}}', "log_history is not a list of JSON objects"),
        ("metrics.json", "[" * 100_000, "nested too deeply"),
        ("trainer_state.json", "null", "holds null"),
        ("amopo_log.jsonl", "x\ny\n", "none of its 2 lines is a JSON object"),
    ],
)
def test_a_corrupt_file_is_refused_by_name_and_with_a_remedy(tmp_path, name, text, problem):
    (tmp_path / name).write_text(text, encoding="utf-8")
    with pytest.raises(RunError) as caught:
        load(tmp_path)
    message = str(caught.value)
    assert str(tmp_path / name) in message and problem in message and "\n" not in message
    assert "move it away" in message or "delete it" in message


def test_a_metrics_file_of_other_bytes_is_refused(tmp_path):
    (tmp_path / "metrics.json").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(RunError, match="not UTF-8 text"):
        load(tmp_path)


def test_values_of_other_shapes_are_absent_and_break_nothing(tmp_path):
    found = {"settings": 3, "versions": [], "preferences": {"before": 1}, "generation": "x", "samples": {"before": 5}}
    found |= {"summary": [{"changes": [None, {"name": "a"}]}, 7], "model": "gpt", "seconds": "long", "data": []}
    run = load(write_run(tmp_path, found | {"log_history": rows(3)}))
    assert (run.settings, run.versions, run.sections, run.samples) == ({}, {}, [], [])
    assert any("before and after" in text for text in run.absent)


def test_a_folder_without_a_run_says_what_is_wanted(tmp_path):
    with pytest.raises(RunError, match="holds no metrics.json, amopo_log.jsonl or trainer_state.json"):
        load(tmp_path)
    with pytest.raises(RunError, match="there is no such file or folder"):
        load(tmp_path / "nothing")
    with pytest.raises(RunError, match="not a file that a run writes"):
        load(write_json(tmp_path / "other.json", {}))
    with pytest.raises(RunError, match="at least one output directory"):
        load_runs([])


def test_two_runs_of_one_name_are_told_apart(tmp_path):
    folders = [write_run(tmp_path / parent / "out") for parent in ("a", "b")] + [write_run(tmp_path / "c")]
    assert [run.name for run in load_runs(folders)] == ["a/out", "b/out", "c"]


def test_one_run_given_twice_is_refused(tmp_path):
    folder = write_run(tmp_path / "out")
    with pytest.raises(RunError, match="given twice"):
        load_runs([folder, tmp_path / "." / "x" / ".." / "out"])


def test_another_runs_log_in_the_folder_is_noticed(tmp_path):
    write_run(tmp_path)
    write_log(tmp_path / "amopo_log.jsonl", rows(12))
    assert load(tmp_path).notes == []
    write_log(tmp_path / "amopo_log.jsonl", rows(3))
    [note] = load(tmp_path).notes
    assert "two runs have written into this folder" in note and "step 24" in note and "step 6" in note
