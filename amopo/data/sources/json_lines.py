"""JSON lines: one JSON object per line of a text file.

`JsonLines(path).rows()` yields (line, row); it holds one line at a time. Blank lines are skipped, and counted. A broken
line and a line that is no JSON object go to `fail`. A file without a line raises.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from os import PathLike
from pathlib import Path
from typing import Any

from amopo.data.schema import DataError
from amopo.data.sources.source import Fail, Row, Source, open_bytes, stop


class JsonLines(Source):
    """Rows of a JSON-lines file."""

    unit = "line"

    def __init__(self, path: str | PathLike[str]) -> None:
        super().__init__(path)
        self._path = Path(path)

    def rows(self, fail: Fail = stop) -> Iterator[Row]:
        is_empty = True
        with open_bytes(self._path) as file:
            for number, raw in enumerate(file, start=1):
                if not raw.strip():
                    continue
                is_empty = False
                try:
                    row = self._parse(raw, number)
                except DataError as error:
                    fail(error)
                else:
                    yield number, row
        if is_empty:
            raise self.error("the file is empty; it needs one JSON object per line")

    def _parse(self, raw: bytes, number: int) -> dict[str, Any]:
        try:
            # Some editors put a byte-order mark before the first line; files put together have it before others.
            row = json.loads(raw.decode("utf-8-sig"))
        except UnicodeDecodeError as error:
            raise self.error(f"the line is not UTF-8 text ({error}); save the file as UTF-8", number) from None
        except json.JSONDecodeError as error:
            hint = _hint(raw, number, error)
            raise self.error(
                f"broken JSON ({error.msg} at column {error.colno}){hint}; fix or remove the line", number
            ) from None
        except (RecursionError, ValueError) as error:  # nested too deeply, or a number with thousands of digits
            raise self.error(f"the JSON cannot be read ({error}); fix or remove the line", number) from None
        if not isinstance(row, dict):
            raise self.error(
                f"each line must hold one JSON object {{...}}, but this one holds {type(row).__name__}", number
            )
        return row


def _hint(raw: bytes, number: int, error: json.JSONDecodeError) -> str:
    """What the file may be instead."""
    if raw.strip() == b"{":
        return "; an object must stand on one line, not on several"
    if error.msg == "Extra data":
        return "; after an object the line must end, with \\n"
    if number == 1 and error.pos == 0:
        return "; neither JSON lines nor a JSON array nor parquet, and nothing else is read"
    return ""
