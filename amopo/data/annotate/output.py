"""The annotated records in a file.

    write_scored(path, source, judge, journal, drop_missing=False) -> Written(records, dropped, missing)

Each row as it was, with the objective's score in every response's "scores" and its scale in "scales". A response
without an answer is written without that score, or, with `drop_missing`, its whole record is left out. Readers see the
old file or the whole new one (`amopo.data.output`).
"""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from typing import Any

from amopo.data.annotate.journal import Journal
from amopo.data.annotate.prompt import Judge
from amopo.data.annotate.source import Entry, Source
from amopo.data.output import HalfCharacters, write_rows
from amopo.data.readers.forms import OnRows


@dataclass(frozen=True)
class Written:
    records: int
    dropped: int
    missing: int
    half_characters: HalfCharacters = field(default_factory=HalfCharacters)


def write_scored(
    path: str | os.PathLike[str],
    source: Source,
    judge: Judge,
    journal: Journal,
    *,
    drop_missing: bool = False,
    on_records: OnRows | None = None,
) -> Written:
    """`on_records(n)` is told how many records are read."""
    records = dropped = missing = 0
    halves = HalfCharacters()
    with write_rows(path) as write:
        for entry in source.each(on_records):
            row, lacking = scored_row(entry, judge, journal)
            missing += lacking
            if lacking and drop_missing:
                dropped += 1
                continue
            records += 1
            halves.add(entry.source, write(row))
    return Written(records, dropped, missing, halves)


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
