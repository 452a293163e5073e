"""All rows of a JSON-lines file at once, each with its line number."""

from __future__ import annotations

from os import PathLike

from amopo.data.sources.json_lines import JsonLines
from amopo.data.sources.source import Row


def read_json_lines(path: str | PathLike[str]) -> list[Row]:
    """[(line, row)], `row` a dict; raises `DataError` that names file and line."""
    return list(JsonLines(path).rows())
