"""Rows to a JSON-lines file, whole or not at all.

    check_target("out.jsonl", force=False, source="in.jsonl")    before any work
    with write_rows("out.jsonl") as write: write({"prompt": ...})

Rows go to a file beside the target, which takes its name when everything is written; an error leaves the target as it
was. A target that ends in ".gz" is compressed. Dates are written as text; what JSON cannot hold raises `DataError`.
"""

from __future__ import annotations

import datetime
import gzip
import json
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from amopo.data.schema import DataError

WriteRow = Callable[[Mapping[str, Any]], None]


def check_target(path: str | os.PathLike[str], *, force: bool, source: str | os.PathLike[str] | None = None) -> Path:
    """The path, if a file may be written there; `force` allows to replace one. The source is never replaced."""
    path = Path(path)
    if not path.absolute().parent.is_dir():
        raise DataError("the folder does not exist; make it first", file=path)
    if path.is_dir():
        raise DataError("this is a folder; name a file", file=path)
    if path.exists():
        if source is not None and Path(source).exists() and path.samefile(source):
            raise DataError("this is the file that is read; name another one to write", file=path)
        if not force:
            raise DataError("the file exists; name another one, or replace it with --force", file=path)
    return path


@contextmanager
def write_rows(path: str | os.PathLike[str]) -> Iterator[WriteRow]:
    """Gives a function that writes one row; the file stands there when the block has ended without an error."""
    path = Path(path)
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        # mtime=0: the same rows give the same bytes
        with open(part, "wb") as raw, _compressed(raw, path) as file:

            def write(row: Mapping[str, Any]) -> None:
                file.write(json.dumps(row, ensure_ascii=False, default=_as_text).encode("utf-8") + b"\n")

            yield write
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)


@contextmanager
def _compressed(raw: Any, path: Path) -> Iterator[Any]:
    if path.suffix != ".gz":
        yield raw
        return
    with gzip.GzipFile(filename="", fileobj=raw, mode="wb", mtime=0) as file:
        yield file


def _as_text(value: object) -> str:
    if isinstance(value, datetime.date | datetime.time):
        return value.isoformat()
    raise DataError(f"a row holds {value!r:.60} of type {type(value).__name__}, which JSON cannot hold; remove it")
