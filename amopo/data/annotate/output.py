"""The annotated records in a file.

    write_scored(path, source, judge, journal, drop_missing=False) -> Written(records, dropped, missing)

Each row as it was, with the objective's score in every response's "scores" and its scale in "scales". A response
without an answer is written without that score, or, with `drop_missing`, its whole record is left out. The file is
written beside its place, synced and moved there at once: readers see the old file or the whole new one. ".gz" is
compressed.
"""

from __future__ import annotations

import contextlib
import gzip
import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from amopo.data.annotate.journal import Journal
from amopo.data.annotate.prompt import Judge
from amopo.data.annotate.source import Entry, Source


@dataclass(frozen=True)
class Written:
    records: int
    dropped: int
    missing: int


def write_scored(
    path: str | os.PathLike[str], source: Source, judge: Judge, journal: Journal, *, drop_missing: bool = False
) -> Written:
    records = dropped = missing = 0
    with _replacing(Path(path)) as file:
        for entry in source:
            row, lacking = scored_row(entry, judge, journal)
            missing += lacking
            if lacking and drop_missing:
                dropped += 1
                continue
            records += 1
            file.write(_line(row))
    return Written(records, dropped, missing)


def scored_row(entry: Entry, judge: Judge, journal: Journal) -> tuple[dict[str, Any], int]:
    """The row with the new scores, and how many of them are missing."""
    responses, missing = [], 0
    for response, wanted in zip(entry.row["responses"], entry.wanted, strict=True):
        scores = dict(response.get("scores", {}))
        if wanted:
            scores.pop(judge.objective, None)
            score = journal.state(judge.question(entry.prompt, response["text"]).key).score
            if score is None:
                missing += 1
            else:
                scores[judge.objective] = _number(score)
        responses.append({**response, "scores": scores})
    ends = [_number(judge.scale.low), _number(judge.scale.high)]
    scales = {**(entry.row.get("scales") or {}), judge.objective: ends}
    return {**entry.row, "responses": responses, "scales": scales}, missing


def _number(value: float) -> float | int:
    return int(value) if float(value).is_integer() else value


def _line(row: Mapping[str, Any]) -> bytes:
    try:
        return json.dumps(row, ensure_ascii=False).encode() + b"\n"
    except UnicodeEncodeError:  # half a character in a field that nobody checks
        return json.dumps(row).encode() + b"\n"


@contextlib.contextmanager
def _replacing(path: Path) -> Iterator[BinaryIO]:
    """A file that takes the name when it is whole, and leaves nothing behind when it never gets so far."""
    part = path.with_name(f"{path.name}.{os.getpid()}.part")
    try:
        with open(part, "wb") as raw:
            if path.suffix == ".gz":
                # no name and no time: the same records give the same bytes
                with gzip.GzipFile(filename="", fileobj=raw, mode="wb", mtime=0) as packed:
                    yield packed
            else:
                yield raw
            raw.flush()
            os.fsync(raw.fileno())
        os.replace(part, path)
    except BaseException:
        part.unlink(missing_ok=True)
        raise
