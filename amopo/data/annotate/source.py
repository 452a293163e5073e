"""Records to annotate, as rows of the grouped form.

    source = Source("data.jsonl", objective="instruction_following", scale=Scale(0, 4), existing="refuse", limit=None)
    for entry in source: entry.prompt, entry.texts, entry.wanted, entry.row

Each iteration reads the file anew, as a stream; one that changes between them is an error by name. Grouped rows keep
every field, so a response may lack scores, or have no "scores" at all, and a prompt may have one response. Other forms
become grouped rows with all their scores.

`existing` is for responses that have a score of the objective: "refuse" them by line, "keep" the score and ask only
for those that lack it, or "replace" all. A record that declares another scale for the objective is refused unless its
scores are replaced. Whatever is wrong with the file raises `DataError` while it is read: run through it once before
asking.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from os import PathLike
from typing import Any

from amopo.data.export import grouped_row
from amopo.data.prompts import parse_prompt
from amopo.data.readers import FORMATS, RawRecord, detect, read_raw
from amopo.data.readers.forms import OnRows
from amopo.data.readers.ids import UniqueIds
from amopo.data.scales import as_scales
from amopo.data.schema import DataError, Message, Scale, check_text, is_finite_number
from amopo.data.sources.source import Row
from amopo.data.sources.source import Source as RowSource
from amopo.data.sources.steady import open_steady

EXISTING = ("refuse", "keep", "replace")


@dataclass(frozen=True)
class Entry:
    """One prompt with its responses. `wanted[i]`: response i needs a score."""

    source: str
    prompt: tuple[Message, ...]
    texts: tuple[str, ...]
    wanted: tuple[bool, ...]
    row: Mapping[str, Any]


class Source:
    def __init__(
        self,
        path: str | PathLike[str],
        *,
        objective: str,
        scale: Scale,
        format: str = "auto",
        existing: str = "refuse",
        limit: int | None = None,
    ) -> None:
        if format not in FORMATS:
            raise ValueError(f"unknown format {format!r}; known: {', '.join(FORMATS)}")
        if existing not in EXISTING:
            raise ValueError(f"existing={existing!r} is not one of {', '.join(EXISTING)}")
        self.path, self.objective, self.scale = path, objective, scale
        self.format, self.existing, self.limit = format, existing, limit
        self._steady: RowSource | None = None

    def __iter__(self) -> Iterator[Entry]:
        return self.each()

    def each(self, on_records: OnRows | None = None) -> Iterator[Entry]:
        """All records; `on_records(n)` is told that n of them are read."""
        ids = UniqueIds(self._source.unit, lambda: (_with_id(*numbered) for numbered in self._rows()))
        for count, (line, row) in enumerate(islice(self._rows(), self.limit), start=1):
            try:
                entry = self._entry(row, f"{self.path}:{line}")
                ids.check(_with_id(line, row))
            except DataError as error:
                raise self._source.error(str(error), line) from None
            if on_records is not None:
                on_records(count)
            yield entry

    @property
    def _source(self) -> RowSource:
        """Opened with the first pass."""
        if self._steady is None:
            self._steady = open_steady(self.path)
        return self._steady

    def _rows(self) -> Iterator[Row]:
        source = self._source
        form = self.format if self.format != "auto" else detect(source, next(source.rows()))
        if form == "grouped":
            yield from source.rows()
            return
        for raw in read_raw(source, form)[1]:
            try:
                yield raw.row, grouped_row(raw)
            except DataError as error:
                raise source.error(str(error), raw.row) from None

    def _entry(self, row: Mapping[str, Any], source: str) -> Entry:
        for key in ("prompt", "responses"):
            if key not in row:
                raise DataError(f'the row has no "{key}"; it has {", ".join(map(repr, row)) or "nothing"}')
        responses = row["responses"]
        if not isinstance(responses, list) or not responses:
            raise DataError('"responses" must be a list of at least one response')
        declared = as_scales(row.get("scales")).get(self.objective)
        if declared is not None and declared != self.scale and self.existing != "replace":
            raise DataError(
                f"the record says that {self.objective!r} goes from {declared}, but the judge is asked for "
                f"{self.scale}; give --scale the same, or --existing replace"
            )
        wanted = [self._is_wanted(response, f"response {i}") for i, response in enumerate(responses, start=1)]
        texts = [
            check_text(response.get("text"), f"the text of response {i}") for i, response in enumerate(responses, 1)
        ]
        return Entry(source, parse_prompt(row["prompt"]), tuple(texts), tuple(wanted), row)

    def _is_wanted(self, response: object, name: str) -> bool:
        if not isinstance(response, dict):
            raise DataError(f'{name} must be an object with "text" and "scores"')
        scores = response.get("scores", {})
        if not isinstance(scores, dict):
            raise DataError(f"the scores of {name} must map each objective to a number")
        if self.objective not in scores or self.existing == "replace":
            return True
        if self.existing == "refuse":
            raise DataError(
                f"{name} has a score for {self.objective!r} already; --existing keep asks only for those without one, "
                "--existing replace asks for all"
            )
        score = scores[self.objective]
        if not is_finite_number(score) or score not in self.scale:
            raise DataError(
                f"the score of {name} for {self.objective!r} is {score!r}, not a number from {self.scale}; correct it, "
                "or --existing replace"
            )
        return False


def _with_id(line: int, row: Mapping[str, Any]) -> RawRecord:
    """As much of a record as it takes to compare ids."""
    return RawRecord([(line, {})], None, (), row.get("id"))
