"""Tables of a study, as markdown that also reads in a terminal.

`StudyTable(title, header, rows, note)`: the first column is text, the others are numbers, already written out.
`as_markdown(tables)` aligns the columns. `number`, `signed`, `percent` and `interval` write numbers; what is missing or
not a number is a dash.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

MISSING = "–"


@dataclass(frozen=True)
class StudyTable:
    title: str
    header: Sequence[str]
    rows: Sequence[Sequence[str]]
    note: str = ""


def _missing(value: Any) -> bool:
    return value is None or not math.isfinite(value)


def number(value: float | None, digits: int = 2) -> str:
    return MISSING if _missing(value) else f"{value:.{digits}f}"


def signed(value: float | None, digits: int = 2) -> str:
    return MISSING if _missing(value) else f"{value:+.{digits}f}"


def percent(value: float | None, digits: int = 1) -> str:
    return MISSING if _missing(value) else f"{100 * value:+.{digits}f} %"


def interval(ends: Sequence[float | None] | None, *, digits: int = 2, scale: float = 1.0) -> str:
    """`[low, high]`, both with their sign; `scale=100` for per cent."""
    if ends is None or any(_missing(end) for end in ends):
        return MISSING
    return f"[{scale * ends[0]:+.{digits}f}, {scale * ends[1]:+.{digits}f}]"


def as_markdown(tables: Sequence[StudyTable], *, level: int = 3) -> str:
    return "\n\n".join(_one(table, level) for table in tables) + "\n"


def _one(table: StudyTable, level: int) -> str:
    for row in table.rows:
        if len(row) != len(table.header):
            raise ValueError(f"table {table.title!r}: a row has {len(row)} cells, the header {len(table.header)}")
    widths = [max(map(len, column)) for column in zip(table.header, *table.rows, strict=True)]

    def line(cells: Sequence[str]) -> str:
        first, *others = cells
        padded = [
            f"{first:<{widths[0]}}",
            *(f"{cell:>{width}}" for cell, width in zip(others, widths[1:], strict=True)),
        ]
        return "| " + " | ".join(padded) + " |"

    rule = "|" + "|".join(["-" * (widths[0] + 2), *("-" * (width + 1) + ":" for width in widths[1:])]) + "|"
    lines = [f"{'#' * level} {table.title}", "", line(table.header), rule, *map(line, table.rows)]
    return "\n".join([*lines, *(["", table.note] if table.note else [])])


def change_cells(found: Mapping[str, Any] | None, *, digits: int = 2, scale: float = 1.0) -> list[str]:
    """Mean, interval over seeds, interval over prompts of one entry; dashes where there is none."""
    if found is None or _missing(found["mean"]):
        return [MISSING] * 3
    return [
        signed(scale * found["mean"], digits),
        interval(found["over_seeds"], digits=digits, scale=scale),
        interval(found["over_prompts"], digits=digits, scale=scale),
    ]


def percent_cells(found: Mapping[str, Any] | None) -> list[str]:
    """The same of a share, in per cent."""
    mean, *ends = change_cells(found, digits=1, scale=100)
    return [mean if mean == MISSING else f"{mean} %", *ends]
