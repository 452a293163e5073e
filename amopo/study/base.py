"""What every study is made of.

A `Study` names its objectives, settings and template, reads the data of a seed, and measures a model on the held-out
part. How the models are trained is the same for all, in `amopo.study.runner`; what the results amount to is said by
`tables` and `checks`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from amopo.cli.inputs import Inputs
from amopo.data import Template
from amopo.report.study_tables import StudyTable
from amopo.study.settings import Settings

Results = Mapping[int, Mapping[str, Mapping[str, Any]]]
"""seed -> method -> what `measure` returned for it."""
Progress = Callable[[int, int], None]


@dataclasses.dataclass(frozen=True)
class Check:
    """Something that must hold."""

    text: str
    holds: bool


class Study(Protocol):
    name: str
    objectives: Sequence[str]
    settings: Settings
    template: Template
    sharing: str

    def fingerprint(self) -> dict[str, Any]:
        """What its results depend on."""
        ...

    def read(self, folder: Path, seed: int) -> Inputs:
        """Training pairs, held-out records and pairs of a seed; the same every time."""
        ...

    def measure(self, model: Any, tokenizer: Any, inputs: Inputs, seed: int, on_batch: Progress) -> dict[str, Any]:
        """What the model does on the held-out part, as numbers that JSON can hold."""
        ...

    def summarise(self, results: Results) -> dict[str, Any]: ...

    def tables(self, summary: Mapping[str, Any]) -> list[StudyTable]: ...

    def checks(self, summary: Mapping[str, Any]) -> list[Check]: ...
