"""A source that is gone through several times, and must be the same each time.

`open_steady(name)` -> a `Source` like that of `open_source`, for whoever reads in several passes instead of keeping
what was read. Each pass gives the same rows, or an error:

- A file is read anew. One that is written to or replaced meanwhile raises `DataError` that names it.
- A data set (`hf:`) is streamed once: the first whole pass keeps its rows as JSON lines in a temporary file (in
  `$TMPDIR`), later passes read that. It takes the disk space of the data, and goes with the source. What JSON does not
  know (dates, images) is kept as text there; no form reads such a value.

Both keep a few bytes of state, no rows.
"""

from __future__ import annotations

import json
import os
import tempfile
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TextIO

from amopo.data.schema import DataError
from amopo.data.sources import open_source
from amopo.data.sources.hub import HubRows
from amopo.data.sources.source import Fail, Row, Source, stop


def open_steady(name: str | os.PathLike[str]) -> Source:
    """The source of that name, for several passes. A file that is not there or cannot be read raises here."""
    source = open_source(name)
    return SpooledRows(source) if isinstance(source, HubRows) else SteadyFile(source, Path(name))


class SteadyFile(Source):
    """Rows of a file that may not change from when this is made on."""

    def __init__(self, source: Source, path: Path) -> None:
        super().__init__(source.name)
        self.unit = source.unit
        self._source, self._path = source, path
        self._stamp = _stamp(path)

    def rows(self, fail: Fail = stop) -> Iterator[Row]:
        self._check()
        try:
            yield from self._source.rows(fail)
        except DataError:
            self._check()  # what is wrong with the rows may be that they are being replaced
            raise
        self._check()

    def _check(self) -> None:
        if _stamp(self._path) != self._stamp:
            raise self.error(
                "the file changed while it was in use; it is read several times and must stay as it is until then, "
                "so start again, or work on a copy"
            )


def _stamp(path: Path) -> tuple[int, ...] | None:
    """What changes when a file is written to or replaced; None where it is gone."""
    try:
        found = os.stat(path)
    except OSError:
        return None
    return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns


class SpooledRows(Source):
    """Rows of a source that is expensive to read, kept in a temporary file by the first whole pass."""

    def __init__(self, source: Source) -> None:
        super().__init__(source.name)
        self.unit = source.unit
        self._source = source
        self._spool: Path | None = None

    def rows(self, fail: Fail = stop) -> Iterator[Row]:
        if self._spool is not None:
            with open(self._spool, encoding="utf-8") as file:
                for line in file:
                    number, row = json.loads(line)
                    yield number, row
            return
        path = self._temporary_file()
        try:
            with open(path, "w", encoding="utf-8") as file:
                for number, row in self._source.rows(fail):
                    self._write(file, number, row)
                    yield number, row
                self._write(file)
        except BaseException:  # also where the reader stops before the end
            path.unlink(missing_ok=True)
            raise
        if self._spool is not None:  # another pass was faster
            path.unlink(missing_ok=True)
            return
        self._spool = path
        weakref.finalize(self, path.unlink, missing_ok=True)

    def _temporary_file(self) -> Path:
        try:
            handle, name = tempfile.mkstemp(prefix="amopo-", suffix=".jsonl")
        except OSError as error:
            raise self._no_room(error) from error
        os.close(handle)
        return Path(name)

    def _write(self, file: TextIO, *row: Any) -> None:
        try:
            if row:
                file.write(json.dumps(row, default=str) + "\n")
            else:
                file.flush()
        except OSError as error:
            raise self._no_room(error) from error

    def _no_room(self, error: OSError) -> DataError:
        return self.error(
            f"its rows cannot be kept in {tempfile.gettempdir()} ({error}); set TMPDIR to a folder with room for them"
        )
