"""Splits: by prompt, by seed, never by position."""

from __future__ import annotations

import pytest

from amopo.data import DataError, PreferenceRecord, split_records


def records(*prompts):
    return [PreferenceRecord(i, ({"role": "user", "content": prompt},), ()) for i, prompt in enumerate(prompts)]


def ids(part):
    return [record.id for record in part]


def prompts(part):
    return {record.prompt[0]["content"] for record in part}


DATA = records(*(f"question {i % 60}" for i in range(100)))


def test_each_record_goes_to_one_part_in_the_order_of_the_file():
    train, evaluation = split_records(DATA, eval_fraction=0.25, seed=0)
    assert sorted(ids(train) + ids(evaluation)) == list(range(100))
    assert ids(train) == sorted(ids(train)) and ids(evaluation) == sorted(ids(evaluation))


def test_records_with_one_prompt_stay_together():
    train, evaluation = split_records(DATA, eval_fraction=0.25, seed=0)
    assert not prompts(train) & prompts(evaluation)
    assert len(prompts(evaluation)) == 15


def test_the_seed_decides_and_nothing_else():
    held_out = prompts(split_records(DATA, eval_fraction=0.25, seed=0)[1])
    assert held_out == prompts(split_records(DATA[::-1], eval_fraction=0.25, seed=0)[1])
    assert held_out != prompts(split_records(DATA, eval_fraction=0.25, seed=1)[1])


def test_neither_part_is_empty_unless_asked_for():
    train, evaluation = split_records(DATA, eval_fraction=0.001, seed=0)
    assert len(prompts(evaluation)) == 1
    train, evaluation = split_records(records("x", "y"), eval_fraction=0.999, seed=0)
    assert (len(train), len(evaluation)) == (1, 1)
    train, evaluation = split_records(DATA, eval_fraction=0, seed=0)
    assert (len(train), len(evaluation)) == (100, 0)


@pytest.mark.parametrize("fraction", [-0.1, 1, float("nan"), "half", True])
def test_a_fraction_is_at_least_zero_and_below_one(fraction):
    with pytest.raises(ValueError, match="eval_fraction must be at least 0 and below 1"):
        split_records(DATA, eval_fraction=fraction, seed=0)


def test_one_prompt_cannot_be_split():
    with pytest.raises(DataError, match="cannot hold out prompts from 1 distinct prompt"):
        split_records(records("x", "x"), eval_fraction=0.5, seed=0)
