"""What a source of rows is.

`Source.rows(fail)` yields (number, row), `row` a dict. A row that cannot be used goes to `fail` as a `DataError` that
names file and row; `stop`, the default, raises it, and a `fail` that returns skips that row. What ends the reading as a
whole (a damaged file, no rows at all) is raised always.
"""

from __future__ import annotations

import gzip
import io
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from amopo.data.schema import DataError

Row = tuple[int, dict[str, Any]]
Fail = Callable[[DataError], None]

_GZIP = b"\x1f\x8b"


def stop(error: DataError) -> None:
    """The default of `fail`: the first bad row ends the reading."""
    raise error


class Source(ABC):
    """Rows under a name. `unit` says what `number` counts, in messages and in the ids of rows without one."""

    unit = "row"

    def __init__(self, name: object) -> None:
        self.name = str(name)

    @abstractmethod
    def rows(self, fail: Fail = stop) -> Iterator[Row]:
        """All rows from the beginning, whenever it is called."""

    def error(self, message: str, number: int | None = None) -> DataError:
        """A `DataError` that names this source and the row."""
        return DataError(message, file=self.name, line=number, unit=self.unit)


@contextmanager
def open_bytes(path: Path) -> Iterator[io.BufferedReader]:
    """The content of a file, without its gzip; whatever cannot be read raises `DataError` that names the file."""
    try:
        with open(path, "rb") as file:
            if file.peek(2)[:2] != _GZIP:
                yield file
                return
            with gzip.open(file, "rb") as unpacked, io.BufferedReader(unpacked) as buffered:
                yield buffered
    except FileNotFoundError:
        raise DataError("the file does not exist; check the path", file=path) from None
    except IsADirectoryError:
        raise DataError(
            "the file cannot be read: it is a folder; name a file, or hf:FOLDER for a folder that the datasets "
            "library can load",
            file=path,
        ) from None
    except (OSError, EOFError) as error:  # gzip's damage is both
        raise DataError(
            f"the file cannot be read ({error}); a readable file of JSON lines, one JSON array or parquet is needed",
            file=path,
        ) from error


def without_nulls(value: Any) -> Any:
    """Tables fill the fields that a row does not have with nulls: the row without them, at every depth."""
    if isinstance(value, dict):
        return {key: without_nulls(item) for key, item in value.items() if item is not None}
    if isinstance(value, list):
        return [without_nulls(item) for item in value]
    return value
