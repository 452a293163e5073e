"""Graded responses and the files made of them."""

from __future__ import annotations

import json
import random
from collections import Counter

import pytest
import torch

from amopo.data import Scale, build_pairs, read_records, scales_of
from amopo.data.verifiable import (
    OBJECTIVES,
    generate_tasks,
    graded_responses,
    grouped_rows,
    score_response,
    task_from_record,
    write_grouped_jsonl,
    write_splits,
)


@pytest.fixture(scope="module")
def rows():
    return list(grouped_rows(generate_tasks(1000, seed=0), seed=0))


@pytest.fixture(scope="module")
def scores(rows):
    """[responses, objectives] in fp64."""
    return torch.tensor(
        [[r["scores"][name] for name in OBJECTIVES] for row in rows for r in row["responses"]], dtype=torch.float64
    )


def test_responses_are_distinct_reproducible_and_as_many_as_asked_for():
    for task in generate_tasks(100, seed=1):
        texts = graded_responses(task, 6, rng=random.Random(7))
        assert len(set(texts)) == 6
        assert texts == graded_responses(task, 6, rng=random.Random(7))
        assert texts != graded_responses(task, 6, rng=random.Random(8))


def test_more_responses_than_there_are_raise():
    (task,) = generate_tasks(1, seed=1)
    with pytest.raises(ValueError, match="cannot find 5000 distinct responses to .*; ask for fewer"):
        graded_responses(task, 5000, rng=random.Random(0))


def test_responses_are_short(rows):
    lengths = [len(r["text"]) for row in rows for r in row["responses"]]
    assert max(lengths) <= 80 and sum(lengths) / len(lengths) < 30


def test_every_score_occurs_and_the_mean_is_near_the_middle(scores):
    for k, name in enumerate(OBJECTIVES):
        shares = {value: count / len(scores) for value, count in Counter(scores[:, k].tolist()).items()}
        assert set(shares) == {0.0, 1.0, 2.0, 3.0, 4.0}, name
        assert min(shares.values()) > 0.03 and max(shares.values()) < 0.5, (name, shares)
        assert 1.6 < scores[:, k].mean() < 2.4, name


def test_the_objectives_conflict_among_responses_with_an_answer(scores):
    answered = scores[scores.sum(1) > 0]
    correlation = torch.corrcoef(answered.T)
    assert correlation[OBJECTIVES.index("helpfulness"), OBJECTIVES.index("conciseness")] < -0.3
    # Nor does one objective stand for another.
    assert (correlation - torch.eye(4)).abs().max() < 0.6
    spread = answered.max(1).values - answered.min(1).values
    assert spread.mean() > 1.5


def test_a_prompt_has_good_and_poor_responses(rows):
    def mean(response):
        return sum(response["scores"].values()) / 4

    best = sum(max(map(mean, row["responses"])) for row in rows) / len(rows)
    worst = sum(min(map(mean, row["responses"])) for row in rows) / len(rows)
    assert best > 2.8 and worst < 1.2


def test_the_reader_reads_what_the_writer_wrote(tmp_path, rows):
    path = tmp_path / "tasks.jsonl"
    tasks = generate_tasks(1000, seed=0)
    write_grouped_jsonl(path, tasks, seed=0)
    assert [json.loads(line) for line in path.read_text().splitlines()] == rows
    records = read_records(path, objectives=OBJECTIVES)
    assert scales_of(records) == dict.fromkeys(OBJECTIVES, Scale(0, 4))
    assert [task_from_record(record) for record in records] == tasks
    for record in records[:200]:
        for response in record.responses:
            assert response.scores == score_response(task_from_record(record), response.text)
    pairs, report = build_pairs(records, objectives=OBJECTIVES)
    assert len(pairs) > 990 and 100 < report.conflicts < 900


def test_responses_to_a_prompt_do_not_depend_on_the_other_prompts():
    tasks = generate_tasks(20, seed=0)
    whole, part = grouped_rows(tasks, seed=0), grouped_rows(tasks[10:], seed=0)
    assert [row["responses"] for row in whole][10:] == [row["responses"] for row in part]


def test_splits_have_no_prompt_in_common(tmp_path):
    paths = write_splits(tmp_path, {"train": 300, "eval": 100}, seed=0)
    assert {name: path.name for name, path in paths.items()} == {"train": "train.jsonl", "eval": "eval.jsonl"}
    train, evaluation = (read_records(paths[name], objectives=OBJECTIVES) for name in ("train", "eval"))
    assert (len(train), len(evaluation)) == (300, 100)
    assert not {record.prompt[0]["content"] for record in train} & {
        record.prompt[0]["content"] for record in evaluation
    }


def test_one_response_is_nothing_to_compare():
    with pytest.raises(ValueError, match="responses_per_prompt must be at least 2"):
        next(grouped_rows(generate_tasks(1, seed=0), seed=0, responses_per_prompt=1))
