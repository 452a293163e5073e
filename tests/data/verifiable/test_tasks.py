"""Generated tasks: distinct, reproducible, short, recoverable."""

from __future__ import annotations

import re
from collections import Counter

import pytest

from amopo.data import DataError, PreferenceRecord
from amopo.data.verifiable import Task, generate_splits, generate_tasks, task_from_record
from amopo.data.verifiable.formats import FORMATS
from amopo.data.verifiable.kinds import KINDS, WORDS


def test_the_seed_decides():
    assert generate_tasks(200, seed=3) == generate_tasks(200, seed=3)
    assert generate_tasks(200, seed=3) != generate_tasks(200, seed=4)


def test_prompts_are_distinct_within_and_across_splits():
    splits = generate_splits({"train": 3000, "eval": 300}, seed=0)
    assert [len(tasks) for tasks in splits.values()] == [3000, 300]
    prompts = [task.prompt for tasks in splits.values() for task in tasks]
    assert len(set(prompts)) == 3300


def test_every_kind_and_every_format_occurs_in_both_splits():
    splits = generate_splits({"train": 3000, "eval": 300}, seed=0)
    for tasks in splits.values():
        kinds = Counter(task.kind for task in tasks)
        assert set(kinds) == set(KINDS) and min(kinds.values()) > len(tasks) / 24
        assert {task.format for task in tasks} == set(FORMATS)


def test_prompts_are_short():
    assert max(len(task.prompt) for task in generate_tasks(3000, seed=1)) <= 64


# Answers worked out here from the prompt's text alone.
def solve(prompt):
    numbers = [int(n) for n in re.findall(r"\d+", prompt)]
    if found := re.match(r"What is (\d+) ([+-]) (\d+)\?", prompt):
        a, b = int(found[1]), int(found[3])
        return str(a + b if found[2] == "+" else a - b)
    if prompt.startswith("Which is "):
        return str({"largest": max, "smallest": min}[prompt.split()[2].rstrip(":")](numbers))
    if found := re.match(r"How many words: ([a-z, ]+)\?", prompt):
        return str(found[1].count(",") + 1)
    if found := re.match(r"(First|Last) letter of ([a-z]+)\?", prompt):
        return found[2][0 if found[1] == "First" else -1]
    return re.match(r"Write ([a-z]+) backwards", prompt)[1][::-1]


def test_answers_are_right():
    for task in generate_tasks(3000, seed=2):
        assert task.answer == solve(task.prompt), task


def test_each_format_is_carried_out_by_its_wrap():
    assert {name: format.wrap("t") for name, format in FORMATS.items()} == {
        "brackets": "[t]",
        "label": "Answer: t.",
        "stars": "*t*",
        "capitals": "T",
    }


def test_words_are_distinct_and_none_reads_the_same_backwards():
    assert len(set(WORDS)) == len(WORDS)
    assert all(word != word[::-1] for word in WORDS)


def test_a_task_survives_its_record():
    for task in generate_tasks(100, seed=0):
        assert task_from_record(PreferenceRecord("r", (), (), extra={"task": task.to_dict()})) == task
    with pytest.raises(DataError, match="record 'r' has no field \"task\""):
        task_from_record(PreferenceRecord("r", (), ()))
    with pytest.raises(DataError, match="a task needs the fields kind, operands, format"):
        Task.from_dict({"kind": "add"})


@pytest.mark.parametrize(
    "fields, message",
    [
        (("multiply", (1, 2), "label"), "unknown kind of task 'multiply'; known: add"),
        (("add", (1, 2), "rhyme"), "unknown format 'rhyme'"),
        (
            ("add", (1, 2), "capitals"),
            "unknown format 'capitals' for a task of kind 'add'; known: brackets, label, stars",
        ),
    ],
)
def test_unknown_kinds_and_formats_raise(fields, message):
    with pytest.raises(ValueError, match=message):
        Task(*fields)


def test_more_tasks_than_there_are_raise():
    with pytest.raises(ValueError, match="there are hardly more than .* ask for fewer"):
        generate_tasks(1_000_000, seed=0)
