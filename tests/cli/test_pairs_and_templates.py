"""Options that decide which pairs are made, who is preferred, and what prompts say, from flag to result."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path

import pytest

pytest.importorskip("transformers")


@pytest.fixture
def conflicting(write):
    """Prompts on which a and b disagree, agree, or tie on b; three responses each."""

    def make(count: int = 12) -> Path:
        rows = []
        for number in range(count):
            b = [(0, 1, 1), (4, 1, 0), (2, 2, 2)][number % 3]
            responses = [
                {"text": f"{word} {number}.", "scores": {"a": a, "b": score}}
                for word, a, score in zip(("The number is", "Perhaps", "No"), (4, 1, 0), b, strict=True)
            ]
            prompt = f"Say the number {number}."
            rows.append({"prompt": prompt, "responses": responses, "scales": {"a": [0, 4], "b": [0, 4]}})
        return write(rows)

    return make


@pytest.fixture
def train(amopo, small, tmp_path):
    def run(data, *argv):
        out = tmp_path / "out"
        outcome = amopo("train", *small, "--data", data, "--objectives", "a,b", "--output-dir", out, "--force", *argv)
        assert outcome.status == 0, outcome.err
        return json.loads((out / "metrics.json").read_text()), outcome

    return run


def test_a_sign_per_objective_from_flag_to_metrics(train, conflicting):
    found, outcome = train(conflicting(), "--orientation", "per_objective", "--eval-fraction", "0.25")
    pairs = found["data"]["training"]["pairs"]
    assert pairs["orientation"] == found["settings"]["orientation"] == "per_objective"
    assert pairs["conflicts_by_objective"]["a"] == 0 < pairs["conflicts_by_objective"]["b"]
    assert pairs["ties_by_objective"]["b"] > 0
    assert f"ties masked (a 0, b {pairs['ties_by_objective']['b']})" in outcome.out
    steps = [log for log in found["log_history"] if "rewards/margins/a" in log]
    assert steps and all(isinstance(log["rewards/margins/a"], float) for log in steps)


def test_n_pairs_per_prompt_and_the_overall_objective(train, conflicting):
    found, _ = train(conflicting(), "--pairs-per-prompt", 2, "--overall", "--eval-fraction", 0)
    assert found["settings"]["objectives"] == ["overall", "a", "b"]
    assert found["settings"]["scales"]["overall"] == [0, 4]
    pairs = found["data"]["training"]["pairs"]
    assert pairs["pairs"] == 24 and pairs["conflicts_by_objective"]["overall"] == 0
    assert any("rewards/margins/overall" in log for log in found["log_history"])


def test_a_template_file_trains_and_evaluates(train, amopo, conflicting, tmp_path):
    template = tmp_path / "mine.txt"
    template.write_text("{objective}: {score} of {high}")
    data = conflicting()
    found, _ = train(data, "--template", template)
    assert found["settings"]["template"] == str(template)
    arguments = ("--data", data, "--objectives", "a,b", "--template", template, "--orientation", "per_objective")
    out = tmp_path / "eval.json"
    outcome = amopo("eval", "--model", tmp_path / "out", *arguments, "--out", out)
    assert outcome.status == 0, outcome.err
    accuracy = json.loads(out.read_text())["preferences"]["rewards/accuracies/b"]
    assert (accuracy * 8).is_integer(), "the four ties of the twelve are not counted"


def test_tokens_are_kept_and_found_again_unless_not_wanted(train, conflicting, tmp_path, monkeypatch):
    monkeypatch.setenv("AMOPO_CACHE", str(tmp_path / "cache"))
    data = conflicting()
    plain, _ = train(data, "--no-cache")
    assert not (tmp_path / "cache").exists()
    first, _ = train(data, "--force")
    entries = {path: os.stat(path).st_mtime_ns for path in (tmp_path / "cache" / "tokens").iterdir()}
    assert len(entries) == 2, "training and evaluation"
    again, _ = train(data, "--force")
    assert {path: os.stat(path).st_mtime_ns for path in (tmp_path / "cache" / "tokens").iterdir()} == entries
    losses = [[log["loss"] for log in found["log_history"] if "loss" in log] for found in (plain, first, again)]
    assert losses[0] == losses[1] == losses[2]


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--orientation", "both"], "--orientation: 'both' is not one of overall, per_objective"),
        (["--pairs-per-prompt", 0], "--pairs-per-prompt: pairs_per_prompt must be an integer of at least 1"),
        (["--pairs-per-prompt", 2, "--pairs", "best_worst"], "--pairs-per-prompt: .*use the strategy 'all'"),
        (["--template", "gone.txt"], "gone.txt: the template file does not exist"),
        (["--template", "gone"], "unknown template 'gone'|gone"),
        (["--overall", "--objectives", "overall,a"], "'overall' is made of the others"),
    ],
)
def test_what_cannot_be_is_said_before_a_file_is_read(amopo, small, tmp_path, argv, message):
    arguments = ("--data", tmp_path / "none.jsonl", "--objectives", "a,b", "--output-dir", tmp_path / "out")
    outcome = amopo("train", *small, *arguments, *argv)
    assert outcome.status == 2
    assert re.search(message, outcome.one_line())
