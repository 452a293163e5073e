"""A question with a format instruction, and a program that knows the answer.

    generate_tasks(n, seed=0) -> list[Task]                         n distinct prompts
    generate_splits({"train": 3000, "eval": 200}, seed=0) -> dict   prompts distinct across the splits too

A `Task` is three stored fields (kind, operands, format); prompt and answer follow from them, so a record that carries
`task.to_dict()` is enough to score what a model generates. The same seed gives the same tasks on every machine.
"""

from __future__ import annotations

import random
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from amopo.data.schema import DataError
from amopo.data.verifiable.formats import FORMATS
from amopo.data.verifiable.kinds import KINDS

# Draws in a row without a new task. Even when most kinds are used up, every tenth draw or so is new.
GIVE_UP = 300


@dataclass(frozen=True)
class Task:
    kind: str
    operands: tuple[int, ...] | tuple[str, ...]
    format: str

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise ValueError(f"unknown kind of task {self.kind!r}; known: {', '.join(KINDS)}")
        if self.format not in formats_for(self.kind):
            raise ValueError(
                f"unknown format {self.format!r} for a task of kind {self.kind!r}; known: "
                f"{', '.join(formats_for(self.kind))}"
            )

    @property
    def prompt(self) -> str:
        return f"{KINDS[self.kind].question(self.operands)} {FORMATS[self.format].instruction}"

    @property
    def answer(self) -> str:
        """The bare answer; `FORMATS[task.format].wrap(task.answer)` is the answer as the prompt wants it."""
        return KINDS[self.kind].answer(self.operands)

    def to_dict(self) -> dict[str, Any]:
        return {"kind": self.kind, "operands": list(self.operands), "format": self.format}

    @classmethod
    def from_dict(cls, fields: Mapping[str, Any]) -> Task:
        try:
            return cls(fields["kind"], tuple(fields["operands"]), fields["format"])
        except (KeyError, TypeError) as error:
            raise DataError(f"a task needs the fields kind, operands, format, but is {fields!r} ({error!r})") from None


def formats_for(kind: str) -> list[str]:
    """The formats that suit the kind's answers."""
    return [name for name, format in FORMATS.items() if not format.letters_only or KINDS[kind].answer_type != "number"]


def generate_tasks(n: int, *, seed: int) -> list[Task]:
    """`n` tasks with distinct prompts; kinds and formats are drawn uniformly, as long as there are new prompts."""
    rng = random.Random(f"tasks:{seed}")
    choices = [(kind, formats_for(kind)) for kind in KINDS]
    tasks: dict[Task, None] = {}
    unlucky = 0
    while len(tasks) < n:
        kind, formats = rng.choice(choices)
        task = Task(kind, KINDS[kind].draw(rng), rng.choice(formats))
        unlucky = unlucky + 1 if task in tasks else 0
        if unlucky > GIVE_UP:
            raise ValueError(
                f"{n} tasks asked for, but there are hardly more than {len(tasks)} distinct ones; ask for fewer"
            )
        tasks[task] = None
    # Kinds with few prompts run out early; shuffled, they are spread evenly, and splits cut from the list are alike.
    return rng.sample(list(tasks), n)


def generate_splits(sizes: Mapping[str, int], *, seed: int) -> dict[str, list[Task]]:
    """Tasks by split. No prompt occurs twice, within a split or across them."""
    tasks = iter(generate_tasks(sum(sizes.values()), seed=seed))
    return {name: [next(tasks) for _ in range(size)] for name, size in sizes.items()}
