"""Which objectives a file scores, before any are named.

`scan_scores(path) -> ScoreScan`: per name that mostly stands for finite numbers, how many responses have it, the
smallest and the largest, and the scale that rows or the form declare. One pass; keeps nothing per row.
`all_objectives(scan, file)`: their names, where all of them are to be read. A name that holds NaN is one of them, so
that whoever reads it is told.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from os import PathLike

from amopo.data.readers.forms import OnRows, read_raw
from amopo.data.readers.raw import UNRATED, RawRecord
from amopo.data.scales import as_scales
from amopo.data.schema import DataError, Scale, check_text, is_finite_number
from amopo.data.sources import Source, open_source, stop


@dataclass
class ScoreRange:
    """`not_finite`: NaN, infinities and numbers that no float can hold. `others`: values that are no numbers."""

    count: int = 0
    low: float = float("inf")
    high: float = float("-inf")
    others: int = 0
    not_finite: int = 0

    def add(self, value: object) -> None:
        if not is_finite_number(value):
            is_number = isinstance(value, int | float) and not isinstance(value, bool)
            self.not_finite += is_number
            self.others += not is_number
            return
        self.count, self.low, self.high = self.count + 1, min(self.low, float(value)), max(self.high, float(value))


@dataclass
class ScoreScan:
    """`ranges`: by name, in the order of the file. `declared`: the first scale of each. `first_error`: of a row."""

    form: str
    records: int = 0
    responses: int = 0
    ranges: dict[str, ScoreRange] = field(default_factory=dict)
    declared: dict[str, Scale] = field(default_factory=dict)
    first_error: DataError | None = None

    @property
    def objectives(self) -> tuple[str, ...]:
        """Names that are numbers more often than not: a bad score here and there makes no other field of them."""
        return tuple(name for name, found in self.ranges.items() if found.count + found.not_finite > found.others)

    @property
    def other_fields(self) -> tuple[str, ...]:
        """The other names beside the responses' texts."""
        return tuple(name for name in self.ranges if name not in self.objectives)

    def add(self, raw: RawRecord) -> None:
        self.records += 1
        for response in raw.responses:
            self.responses += 1
            for name, score in response.scores.items():
                if score is not UNRATED:
                    self.ranges.setdefault(name, ScoreRange()).add(score)
        for name, scale in as_scales(raw.scales).items():
            self.declared.setdefault(name, scale)


def all_objectives(scan: ScoreScan, file: str) -> tuple[str, ...]:
    """The names of all scores; raises where there are none, or one that nobody can ask for."""
    if not scan.objectives:
        texts = scan.other_fields
        hint = f"; {texts[0]!a} holds other values: scores must be numbers, not text" if texts else ""
        if scan.first_error:
            hint = f"; the first error: {scan.first_error}"
        raise DataError(f"no field of the responses holds numbers{hint}", file=file)
    for name in scan.objectives:
        try:
            check_text(name, "the name of a score")
        except DataError as error:
            raise DataError(f"{error}. Or name the objectives to read with --objectives", file=file) from None
    return scan.objectives


def scan_scores(
    path: str | PathLike[str] | Source,
    *,
    format: str = "auto",
    on_error: Callable[[DataError], None] | None = None,
    on_rows: OnRows | None = None,
) -> ScoreScan:
    """What the file scores; `on_error` takes the errors of single rows, which are skipped then."""
    source, scan = open_source(path), ScoreScan("")

    def fail(error: DataError) -> None:
        scan.first_error = scan.first_error or error
        (on_error or stop)(error)

    scan.form, raws = read_raw(source, format, fail=fail, on_rows=on_rows)
    for raw in raws:
        try:
            scan.add(raw)
        except DataError as error:
            fail(source.error(str(error), raw.row))
    return scan
