"""What one preference record is.

A record is a prompt with two or more responses; each response has one score per objective.

    PreferenceRecord(id, prompt, responses)     prompt: ({"role": "user", "content": "..."}, ...)
    Response(text, scores)                      scores: {"helpfulness": 3.0, ...}
    Pair(id, prompt, chosen, rejected, signs)   two responses of one record, the better one first

Every objective has a `Scale(low, high)`. Scores must lie on it, else `DataError`, which is a ValueError that names file
and line. Messages are plain dicts, because chat templates take dicts. Content is text only: images or tool calls raise
in the reader.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, TypedDict


class DataError(ValueError):
    """Input data that cannot be used. The message starts with the file and the line where they are known."""

    def __init__(self, message: str, *, file: object = None, line: int | None = None, unit: str = "line") -> None:
        self.file = None if file is None else str(file)
        self.line = line
        place = [] if file is None else [self.file]
        if line is not None:
            place.append(f"{unit} {line}")  # "row" where a file has no lines
        super().__init__(f"{', '.join(place)}: {message}" if place else message)


class Message(TypedDict):
    role: str
    content: str


@dataclass(frozen=True)
class Scale:
    """The lowest and the highest score of an objective; higher means more of it."""

    low: float
    high: float

    def __post_init__(self) -> None:
        for name in ("low", "high"):
            value = getattr(self, name)
            if not is_finite_number(value):
                raise DataError(f"a scale needs two finite numbers, but {name} is {value!r}")
            object.__setattr__(self, name, float(value))
        if self.low >= self.high:
            raise DataError(f"a scale needs low < high, but got low={self.low:g}, high={self.high:g}")

    def __contains__(self, score: float) -> bool:
        return self.low <= score <= self.high

    def normalise(self, score: float) -> float:
        """The score as a fraction: 0 at the low end, 1 at the high end."""
        return (score - self.low) / (self.high - self.low)

    def __str__(self) -> str:
        return f"{show_number(self.low)} to {show_number(self.high)}"


@dataclass(frozen=True)
class Response:
    text: str
    scores: Mapping[str, float]


@dataclass(frozen=True)
class PreferenceRecord:
    """One prompt with its scored responses.

    `source` says where it came from ("file:line"). `scales` holds the scale of each objective that was read.
    `extra` holds the record's other fields as they stood in the file.
    """

    id: int | str
    prompt: tuple[Message, ...]
    responses: tuple[Response, ...]
    source: str = ""
    scales: Mapping[str, Scale] = field(default_factory=dict)
    extra: Mapping[str, Any] = field(default_factory=dict)

    @property
    def label(self) -> str:
        """How messages name this record."""
        return f"{self.source}, record {self.id!r}" if self.source else f"record {self.id!r}"


@dataclass(frozen=True)
class Pair:
    """Two responses to one prompt; `chosen` is the one with the larger weighted score.

    `signs`, by objective: +1 where it prefers `chosen`, -1 where it prefers `rejected`, 0 where neither. None: one
    winner for all objectives.
    """

    id: int | str
    prompt: tuple[Message, ...]
    chosen: Response
    rejected: Response
    signs: Mapping[str, int] | None = None


def show_number(value: float) -> str:
    """At most two decimals, none where there are none: 4.0 is "4"; no exponent, no minus before a zero."""
    text = f"{value:.2f}".rstrip("0").rstrip(".")
    return "0" if text == "-0" else text


def is_finite_number(value: object) -> bool:
    """True for int and float, but not for bool, NaN, infinity, text, or an integer that no float can hold."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    try:
        return math.isfinite(value)
    except OverflowError:
        return False


def check_text(value: object, name: str) -> str:
    """The value, if it is text that a tokenizer can take; else DataError under that name."""
    if not isinstance(value, str):
        raise DataError(f"{name} must be a string, but is {type(value).__name__}")
    if not value.strip():
        raise DataError(f"{name} is empty; give it text or remove it")
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise DataError(
            f"{name} holds half a character, {value[error.start]!r} (a lone surrogate); repair it"
        ) from None
    return value
