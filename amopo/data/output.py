"""Rows to a JSON-lines file, whole or not at all.

    check_target("out.jsonl", force=False, source="in.jsonl")    before any work
    with write_rows("out.jsonl") as write: write({"prompt": ...})

Rows go to a file beside the target, which takes its name when everything is written and synced; an error leaves the
target as it was. A target that ends in ".gz" is compressed. Dates are written as text; what JSON cannot hold raises
`DataError`.

Text is UTF-8. Half a character (a lone surrogate), which JSON can escape and UTF-8 cannot hold, is written as that
escape, so that the row reads as the same; `write` gives the name of such a field, for `HalfCharacters` to say where.
"""

from __future__ import annotations

import datetime
import gzip
import json
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from amopo.data.schema import DataError

WriteRow = Callable[[Mapping[str, Any]], str | None]

_NAMED = 3


@dataclass
class HalfCharacters:
    """Rows that hold half a character in a field that nobody reads: how many, and the first few."""

    count: int = 0
    first: list[str] = field(default_factory=list)

    def add(self, place: str, name: str | None) -> None:
        """`name`: what writing the row gave; nothing where all is well."""
        if name is None:
            return
        self.count += 1
        if len(self.first) < _NAMED:
            self.first.append(f"{place}: its field {name}")

    def lines(self) -> list[str]:
        """What is to be said of it."""
        if not self.count:
            return []
        more = f" and {self.count - len(self.first)} rows more" if self.count > len(self.first) else ""
        return [
            f"note: half a character (a lone surrogate) stands in {'; '.join(self.first)}{more}. It was written as the "
            "escape that it is; programs other than Python may refuse such rows, so repair them"
        ]


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
        with open(part, "wb") as raw:
            with _compressed(raw, path) as file:

                def write(row: Mapping[str, Any]) -> str | None:
                    try:
                        file.write(_json(row, ensure_ascii=False).encode("utf-8") + b"\n")
                    except UnicodeEncodeError:
                        file.write(_json(row, ensure_ascii=True).encode("ascii") + b"\n")
                        return half_character(row)
                    return None

                yield write
            raw.flush()
            os.fsync(raw.fileno())
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)


def half_character(value: object, name: str = "") -> str | None:
    """Where in a row half a character stands: "meta.tags[2]"; None where all of it is whole."""
    if isinstance(value, str):
        try:
            value.encode()
        except UnicodeEncodeError:
            return ascii(name)
        return None
    if isinstance(value, Mapping):
        inner = [(f"{name}.{key}" if name else str(key), item) for key, item in value.items()]
        inner += [(place, key) for (place, _), key in zip(inner, value, strict=True)]
    elif isinstance(value, list | tuple):
        inner = [(f"{name}[{position}]", item) for position, item in enumerate(value)]
    else:
        return None
    return next((found for place, item in inner if (found := half_character(item, place)) is not None), None)


def _json(row: Mapping[str, Any], *, ensure_ascii: bool) -> str:
    return json.dumps(row, ensure_ascii=ensure_ascii, default=_as_text)


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
