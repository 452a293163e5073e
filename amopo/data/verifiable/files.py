"""Verifiable tasks as preference files.

    write_grouped_jsonl(path, tasks, seed=0, responses_per_prompt=4)    grouped JSONL that `read_records` reads
    write_splits(folder, {"train": 3000, "eval": 200}, seed=0)          folder/train.jsonl, folder/eval.jsonl
    task_from_record(record) -> Task                                    to score what a model generates for it

Each line declares its scales and carries its task. The responses to a prompt depend on the prompt and the seed alone.
"""

from __future__ import annotations

import json
import random
from collections.abc import Iterable, Iterator, Mapping
from os import PathLike
from pathlib import Path
from typing import Any

from amopo.data.schema import DataError, PreferenceRecord
from amopo.data.verifiable.responses import graded_responses
from amopo.data.verifiable.scoring import SCALES, score_response
from amopo.data.verifiable.tasks import Task, generate_splits


def grouped_rows(tasks: Iterable[Task], *, seed: int, responses_per_prompt: int = 4) -> Iterator[dict[str, Any]]:
    """One row of grouped JSONL per task."""
    if responses_per_prompt < 2:
        raise ValueError(f"responses_per_prompt must be at least 2 to compare, but is {responses_per_prompt}")
    for number, task in enumerate(tasks):
        rng = random.Random(f"responses:{seed}:{task.prompt}")
        texts = graded_responses(task, responses_per_prompt, rng=rng)
        yield {
            "id": f"task-{number}",
            "prompt": task.prompt,
            "responses": [{"text": text, "scores": score_response(task, text)} for text in texts],
            "scales": {objective: [scale.low, scale.high] for objective, scale in SCALES.items()},
            "task": task.to_dict(),
        }


def write_grouped_jsonl(
    path: str | PathLike[str], tasks: Iterable[Task], *, seed: int, responses_per_prompt: int = 4
) -> None:
    with open(path, "w", encoding="utf-8") as file:
        for row in grouped_rows(tasks, seed=seed, responses_per_prompt=responses_per_prompt):
            file.write(json.dumps(row) + "\n")


def write_splits(
    folder: str | PathLike[str], sizes: Mapping[str, int], *, seed: int, responses_per_prompt: int = 4
) -> dict[str, Path]:
    """One file per split, without a prompt in common; gives the path of each."""
    paths = {}
    for name, tasks in generate_splits(sizes, seed=seed).items():
        paths[name] = Path(folder) / f"{name}.jsonl"
        write_grouped_jsonl(paths[name], tasks, seed=seed, responses_per_prompt=responses_per_prompt)
    return paths


def task_from_record(record: PreferenceRecord) -> Task:
    if "task" not in record.extra:
        raise DataError(f'{record.label} has no field "task"; only generated tasks can be scored by program')
    return Task.from_dict(record.extra["task"])
