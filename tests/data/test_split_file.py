"""Files divided by prompt: each row once, no prompt in both, the same choice as training makes."""

from __future__ import annotations

import json

import pytest

from amopo.data import DataError, read_records, split_records
from amopo.data.split_file import split_file

GOOD, POOR = {"helpfulness": 3}, {"helpfulness": 1}


@pytest.fixture
def split(tmp_path):
    def run(path, *, eval_fraction=0.25, seed=0, **options):
        targets = tmp_path / "train.jsonl", tmp_path / "eval.jsonl"
        report = split_file(path, *targets, eval_fraction=eval_fraction, seed=seed, **options)
        return report, *([json.loads(line) for line in target.read_text().splitlines()] for target in targets)

    return run


@pytest.fixture
def rows(grouped_row):
    return [grouped_row(GOOD, POOR, prompt=f"question {n % 30}: Köln", note=[n]) for n in range(50)]


def prompts(part):
    return {row["prompt"] for row in part}


def test_every_row_goes_to_one_file_unchanged_and_in_order(split, write_jsonl, rows):
    report, train, evaluation = split(write_jsonl(*rows))
    assert sorted(train + evaluation, key=lambda row: row["note"]) == rows
    assert [row["note"] for row in train] == sorted(row["note"] for row in train)
    assert not prompts(train) & prompts(evaluation)
    assert (report.train_rows, report.eval_rows) == (len(train), len(evaluation))
    assert (report.train_prompts, report.eval_prompts) == (22, 8) == (len(prompts(train)), len(prompts(evaluation)))


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_the_choice_is_that_of_a_split_in_memory(split, write_jsonl, rows, seed):
    path = write_jsonl(*rows)
    _, train, evaluation = split(path, seed=seed)
    in_memory = split_records(read_records(path, objectives=["helpfulness"]), eval_fraction=0.25, seed=seed)
    for part, records in zip((train, evaluation), in_memory, strict=True):
        assert [row["note"] for row in part] == [record.extra["note"] for record in records]


def test_rows_of_one_helpsteer2_prompt_stay_side_by_side(split, write_jsonl):
    rows = [{"prompt": f"q{n}", "response": text, "helpfulness": 1} for n in range(20) for text in ("a", "b")]
    path = write_jsonl(*rows)
    report, train, evaluation = split(path)
    assert report.form == "helpsteer2" and len(evaluation) == 10 and report.eval_prompts == 5
    for part in (train, evaluation):
        assert [row["response"] for row in part] == ["a", "b"] * (len(part) // 2)
        assert [row["prompt"] for row in part[::2]] == [row["prompt"] for row in part[1::2]]


def test_prompts_are_compared_as_they_are_read(split, write_jsonl):
    """One prompt written in two ways is one prompt."""
    scores = {"chosen_scores": GOOD, "rejected_scores": POOR}
    messages = [{"role": "user", "content": "x"}]
    rows = [
        {"prompt": "x", "chosen": "a", "rejected": "b", **scores},
        {"prompt": messages, "chosen": "c", "rejected": "d", **scores},
        {"prompt": "y", "chosen": "a", "rejected": "b", **scores},
    ]
    report, train, evaluation = split(write_jsonl(*rows), eval_fraction=0.5)
    assert report.train_prompts == report.eval_prompts == 1
    assert sorted((len(train), len(evaluation))) == [1, 2]


@pytest.mark.parametrize(
    ("bad", "message"),
    [('{"broken', "line 3: broken JSON"), ({"prompt": "x"}, "line 3: the row has no"), ({"prompt": 7}, "line 3: ")],
)
def test_a_bad_row_ends_it_before_anything_is_written(split, write_jsonl, rows, tmp_path, bad, message):
    bad = {**rows[0], **bad} if bad == {"prompt": 7} else bad
    with pytest.raises(DataError, match=message):
        split(write_jsonl(*rows[:2], bad, *rows[2:]))
    assert [path.name for path in tmp_path.iterdir()] == ["data.jsonl"]


def test_what_cannot_be_split_is_refused(split, write_jsonl, rows):
    with pytest.raises(DataError, match="data.jsonl: cannot hold out prompts from 1 distinct prompt"):
        split(write_jsonl(rows[0], rows[0]))
    for fraction in (0, 1, -0.5, float("nan")):
        with pytest.raises(ValueError, match="eval_fraction"):
            split(write_jsonl(*rows), eval_fraction=fraction)
