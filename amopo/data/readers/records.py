"""Preference records from a source, checked.

    read_records(path, objectives=[...], scales=None, format="auto") -> list[PreferenceRecord]
    iter_records(the same) -> the same records, one at a time

Every response needs a score on every named objective, within its scale; other scores are not read. Whatever is wrong
raises `DataError` that names the file, the line and the remedy: `read_records` before anything is returned,
`iter_records` when it gets there. `on_error` takes the errors of single rows instead, and the rows are skipped.
`iter_records` holds one record, one chunk of the file, and a few bytes for each id that the file gives.

What the forms leave out is counted in `report` (a `ReadReport`). `on_rows(n)` is told how many rows were read.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import islice
from os import PathLike

from amopo.data.prompts import parse_prompt
from amopo.data.readers.forms import OnRows, check_format, read_raw
from amopo.data.readers.ids import UniqueIds, default_id
from amopo.data.readers.raw import UNRATED, RawRecord, RawResponse
from amopo.data.readers.report import ReadReport
from amopo.data.scales import ScaleLike, as_scales, check_objectives, resolve_scales
from amopo.data.schema import DataError, PreferenceRecord, Response, Scale, check_text, is_finite_number
from amopo.data.sources import Fail, Source, open_source, stop
from amopo.packing.sample import sample_id_to_int64

# Records that are looked through for an objective that a response lacks, to say whether any has it.
LOOK_THROUGH = 10_000

logger = logging.getLogger(__name__)


def read_records(
    path: str | PathLike[str] | Source,
    *,
    objectives: Sequence[str],
    scales: Mapping[str, ScaleLike] | None = None,
    format: str = "auto",
    report: ReadReport | None = None,
    on_error: Callable[[DataError], None] | None = None,
    on_rows: OnRows | None = None,
) -> list[PreferenceRecord]:
    """Every record of a file or a data set, checked."""
    return list(
        iter_records(
            path,
            objectives=objectives,
            scales=scales,
            format=format,
            report=report,
            on_error=on_error,
            on_rows=on_rows,
        )
    )


def iter_records(
    path: str | PathLike[str] | Source,
    *,
    objectives: Sequence[str],
    scales: Mapping[str, ScaleLike] | None = None,
    format: str = "auto",
    report: ReadReport | None = None,
    on_error: Callable[[DataError], None] | None = None,
    on_rows: OnRows | None = None,
) -> Iterator[PreferenceRecord]:
    """Records one at a time, in bounded memory. Arguments, and that the file is there, are checked at once."""
    objectives, given = check_objectives(objectives), as_scales(scales)
    check_format(format)
    return _Reading(open_source(path), objectives, given, format).run(report, on_error or stop, on_rows)


@dataclass
class _Reading:
    source: Source
    objectives: tuple[str, ...]
    given: Mapping[str, Scale]
    format: str

    def run(self, report: ReadReport | None, fail: Fail, on_rows: OnRows | None) -> Iterator[PreferenceRecord]:
        found = ReadReport() if report is None else report
        found.form, raws = read_raw(self.source, self.format, fail=fail, on_rows=on_rows)
        ids = UniqueIds(self.source.unit, self._again)
        before = (found.records, found.records_unrated)
        for raw in raws:
            self._check_objectives_are_scored(raw)
            try:
                record = self._build(raw, found)
                if record is not None:
                    ids.check(raw)
            except DataError as error:
                fail(error if error.file else self.source.error(str(error), raw.row))
                continue
            if record is not None:
                found.records += 1
                found.responses += len(record.responses)
                yield record
        if found.records == before[0] and found.records_unrated > before[1]:
            raise self.source.error(
                f"no prompt has two responses with a rating on {', '.join(self.objectives)}; "
                f"left out: {found.records_unrated} prompts"
            )
        if report is None and not found.is_complete:
            logger.warning("%s: %s", self.source.name, found)

    def _again(self) -> Iterator[RawRecord]:
        """The same records again, without their errors: those were told the first time."""
        return read_raw(self.source, self.format, fail=lambda error: None)[1]

    def _build(self, raw: RawRecord, found: ReadReport) -> PreferenceRecord | None:
        """The record, or None where too few of its responses are rated."""
        prompt = parse_prompt(raw.prompt)
        record_id = _check_id(raw.id, default=default_id(raw, self.source.unit))
        responses = [response for response in raw.responses if not (raw.unrated and self._is_unrated(response))]
        left_out = len(raw.responses) - len(responses)
        if len(responses) < 2 and raw.unrated:
            found.leave_out(left_out, f"{self.source.unit} {raw.row}")
            return None
        if len(responses) < 2:
            raise DataError(f"the prompt has {len(responses)} response(s); at least 2 are needed to compare")
        scales = resolve_scales(self.objectives, given=self.given, declared=as_scales(raw.scales))
        checked = tuple(self._build_response(response, scales) for response in responses)
        if left_out:
            found.leave_out(left_out, None)
        place = f"{self.source.name}:{raw.row}"
        return PreferenceRecord(record_id, prompt, checked, place, scales, raw.extra)

    def _is_unrated(self, response: RawResponse) -> bool:
        return any(response.scores.get(name, UNRATED) is UNRATED for name in self.objectives)

    def _build_response(self, raw: RawResponse, scales: Mapping[str, Scale]) -> Response:
        scores = {}
        try:
            for objective, scale in scales.items():
                scores[objective] = _check_score(raw, objective, scale)
            return Response(check_text(raw.text, f"the text of {raw.name}"), scores)
        except DataError as error:
            raise self.source.error(str(error), raw.row) from None

    def _check_objectives_are_scored(self, raw: RawRecord) -> None:
        """A name that no response has a score for is most likely misspelt: say so, with the names that there are."""
        missing = [name for name in self.objectives if not any(name in response.scores for response in raw.responses)]
        if not missing or not raw.responses:
            return
        for objective in missing:
            if objective not in self._known:
                raise self.source.error(
                    f"no response has a score for objective {objective!r}; objectives in the file: "
                    f"{', '.join(self._known) or 'none'}"
                )

    @cached_property
    def _known(self) -> dict[str, None]:
        """Names of all scores."""
        known: dict[str, None] = {}
        for raw in islice(self._again(), LOOK_THROUGH):
            known.update((name, None) for response in raw.responses for name in response.scores)
        return known


def _check_score(raw: RawResponse, objective: str, scale: Scale) -> float:
    if objective not in raw.scores:
        raise DataError(f"{raw.name} has no score for objective {objective!r}; add it or leave the objective out")
    score = raw.scores[objective]
    if not is_finite_number(score):
        shown = _shorten(repr(score))
        raise DataError(f"the score of {raw.name} for objective {objective!r} is {shown}; a finite number is needed")
    if score not in scale:
        raise DataError(
            f"the score of {raw.name} for objective {objective!r} is {score}, outside its scale {scale}; "
            f"correct the score, or declare the scale, e.g. --scales {objective}=low:high"
        )
    return float(score)


def _shorten(text: str, limit: int = 60) -> str:
    """Text for a message: an integer may have thousands of digits."""
    return text if len(text) <= limit else f"{text[: limit - 4]} ..."


def _check_id(value: object, *, default: str) -> int | str:
    if value is None:
        return default
    try:
        sample_id_to_int64(value)
    except (TypeError, ValueError) as error:
        raise DataError(str(error)) from None
    return value
