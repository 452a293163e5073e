"""JSON lines from a file, each with its line number.

`read_json_lines(path) -> [(line, row)]`, `row` a dict. Files are UTF-8, with or without gzip (".gz"). Blank lines are
skipped. A missing or empty file, a broken line, or a line that is no JSON object raises `DataError` naming file and
line.
"""

from __future__ import annotations

import gzip
import json
from os import PathLike
from pathlib import Path
from typing import Any

from amopo.data.schema import DataError

JsonLine = tuple[int, dict[str, Any]]


def read_json_lines(path: str | PathLike[str]) -> list[JsonLine]:
    path = Path(path)
    rows: list[JsonLine] = []
    try:
        with gzip.open(path, "rb") if path.suffix == ".gz" else open(path, "rb") as file:
            for number, raw in enumerate(file, start=1):
                if raw.strip():
                    rows.append((number, _parse_line(raw, path, number)))
    except FileNotFoundError:
        raise DataError("the file does not exist; check the path", file=path) from None
    except (OSError, EOFError) as error:
        raise DataError(
            f"the file cannot be read ({error}); a readable JSON-lines file is needed", file=path
        ) from error
    if not rows:
        raise DataError("the file is empty; it needs one JSON object per line", file=path)
    return rows


def _parse_line(raw: bytes, path: Path, number: int) -> dict[str, Any]:
    try:
        # Some editors put a byte-order mark before the first line.
        row = json.loads(raw.decode("utf-8-sig" if number == 1 else "utf-8"))
    except UnicodeDecodeError as error:
        raise DataError(f"the line is not UTF-8 text ({error})", file=path, line=number) from None
    except json.JSONDecodeError as error:
        hint = "; the file looks like one JSON array, write one object per line" if raw.strip() == b"[" else ""
        raise DataError(
            f"broken JSON ({error.msg} at column {error.colno}){hint}; fix or remove the line", file=path, line=number
        ) from None
    except (RecursionError, ValueError) as error:  # nested too deeply, or a number with thousands of digits
        raise DataError(f"the JSON cannot be read ({error}); fix or remove the line", file=path, line=number) from None
    if not isinstance(row, dict):
        raise DataError(
            f"each line must hold one JSON object {{...}}, but this one holds {type(row).__name__}",
            file=path,
            line=number,
        )
    return row
