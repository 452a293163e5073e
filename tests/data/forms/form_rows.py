"""Rows of the forms of preference data that others publish, read and shown."""

from __future__ import annotations

import pytest

from amopo.data import DataError, read_records

GOOD, POOR = {"helpfulness": 3, "correctness": 4}, {"helpfulness": 1, "correctness": 2}
OBJECTIVES = ("helpfulness", "correctness")
ASPECTS = ("instruction_following", "truthfulness", "honesty", "helpfulness")


def user(text):
    return {"role": "user", "content": text}


def assistant(text):
    return {"role": "assistant", "content": text}


def read(path, objectives=OBJECTIVES, **options):
    return read_records(path, objectives=objectives, **options)


def shown(record):
    """Prompt as text, and each response with its scores."""
    return [m["content"] for m in record.prompt], [(r.text, dict(r.scores)) for r in record.responses]


def refused(path, *parts, objectives=OBJECTIVES, **options):
    with pytest.raises(DataError) as error:
        read(path, objectives, **options)
    for part in (str(path), *parts):
        assert part in str(error.value), str(error.value)


def trl(chosen="yes", rejected="no", **fields):
    row = {"prompt": "Is snow cold?", "chosen": chosen, "rejected": rejected}
    row |= {"chosen_scores": GOOD, "rejected_scores": POOR, "scales": dict.fromkeys(OBJECTIVES, [0, 4])}
    return {name: value for name, value in (row | fields).items() if value is not None}


def released(chosen=None, rejected=None, **fields):
    row = {
        "prompt": "Is snow cold?",
        "chosen": {"response": "yes", "helpfulness": "3", "correctness": "4"} | (chosen or {}),
        "rejected": {"response": "no", "helpfulness": "1", "correctness": "2"} | (rejected or {}),
    }
    return row | fields


def helpsteer2(*prompts, **fields):
    return [{"prompt": p, "response": t, **GOOD, **fields} for p in prompts for t in ("a", "b")]


def completion(text="an answer", **ratings):
    ratings = dict.fromkeys(ASPECTS, "4") | ratings
    notes = {name: {"Rating": rating, "Rationale": "because"} for name, rating in ratings.items()}
    return {"model": "m", "response": text, "annotations": notes, "overall_score": 7.5}


def instruction(*completions, **fields):
    return {"source": "s", "instruction": "Is snow cold?", "completions": list(completions), **fields}
