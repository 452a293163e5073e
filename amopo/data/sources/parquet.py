"""Rows of a parquet file.

`ParquetRows(path).rows()` yields (number, row), with nulls left out: a table fills in nulls where a row has no such
field. It holds one batch of rows; pyarrow holds a row group. Needs pyarrow (`pip install 'amopo[data]'`).
"""

from __future__ import annotations

from collections.abc import Iterator
from os import PathLike
from typing import Any

from amopo.data.schema import DataError
from amopo.data.sources.source import Fail, Row, Source, stop, without_nulls

BATCH = 256  # rows


class ParquetRows(Source):
    """Rows of one parquet file."""

    def __init__(self, path: str | PathLike[str]) -> None:
        super().__init__(path)
        self._parquet = _import_parquet(self.name)

    def rows(self, fail: Fail = stop) -> Iterator[Row]:
        number = 0
        for row in self._rows():
            number += 1
            yield number, without_nulls(row)
        if not number:
            raise self.error("the file is empty; it needs one row per prompt, pair or response")

    def _rows(self) -> Iterator[dict[str, Any]]:
        try:
            with self._parquet.ParquetFile(self.name) as file:
                for batch in file.iter_batches(batch_size=BATCH):
                    rows = batch.to_pylist(maps_as_pydicts="strict")
                    yield from rows
                    del rows  # before the next batch is made
        except (OSError, ValueError, KeyError) as error:  # pyarrow's errors are these
            reason = " ".join(str(error).split())
            raise self.error(f"the parquet file cannot be read ({reason:.200}); is it complete?") from error


def _import_parquet(name: str) -> Any:
    try:
        import pyarrow.parquet as parquet
    except ImportError:
        raise DataError("reading parquet needs pyarrow: pip install 'amopo[data]'", file=name) from None
    return parquet
