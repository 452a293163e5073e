"""What a form makes of rows: prompts and scored responses, not checked yet.

A form's reader gives `RawRecord`s; `amopo.data.readers.records` checks them. `unrated=True` marks a form whose
responses may lack a rating (`UNRATED`, or no entry): those responses are left out and counted, where otherwise they are
errors.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from amopo.data.schema import DataError
from amopo.data.sources.source import Row


class _Unrated:
    def __repr__(self) -> str:
        return "no rating"


UNRATED: Any = _Unrated()


@dataclass(frozen=True)
class RawResponse:
    """`row`: where it stands. `name`: how messages call it. `scores`: as in the file, other fields among them."""

    row: int
    name: str
    text: object
    scores: Mapping[str, object]


@dataclass(frozen=True)
class RawRecord:
    """`rows`: the rows that it was read from. `scales`: those that the row or the form declares."""

    rows: Sequence[Row]
    prompt: object
    responses: Sequence[RawResponse]
    id: object = None
    scales: object = None
    extra: Mapping[str, Any] = field(default_factory=dict)
    unrated: bool = False

    @property
    def row(self) -> int:
        """Number of the first row."""
        return self.rows[0][0]


def require(row: Mapping[str, object], keys: Sequence[str], name: str) -> None:
    """Raise for the first key that is not there."""
    for key in keys:
        if key not in row:
            raise DataError(f'{name} has no "{key}"; it has {", ".join(map(repr, row)) or "nothing"}')


def declared(scales: object) -> Mapping[str, object]:
    """The scales that a row declares, to stand over those of its form."""
    if scales is None:
        return {}
    if not isinstance(scales, Mapping):
        raise DataError(f"scales must map each objective to [low, high], but is {scales!r}")
    return scales


def others(row: Mapping[str, Any], *read: str) -> dict[str, Any]:
    """The fields that the form does not read."""
    return {key: value for key, value in row.items() if key not in read}
