"""The forms of rows, and which one a row has.

`FORMS[name]`: how a form is told and read. `FORMATS`: the names that a caller may give, "auto" among them.
`detect(source, first)` tells the form of a row by its fields; none, or several, raise `DataError` that lists the forms.
`read_raw(source, format)` gives the `RawRecord`s of a source.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import chain
from typing import Any

from amopo.data.readers import grouped, helpsteer2, released, trl, ultrafeedback
from amopo.data.readers.raw import RawRecord
from amopo.data.schema import DataError
from amopo.data.sources.source import Fail, Row, Source, stop

Read = Callable[[Source, Iterable[Row], Fail], Iterator[RawRecord]]
OnRows = Callable[[int], None]
EVERY = 100  # rows between two calls of on_rows


@dataclass(frozen=True)
class Form:
    """`fields`: what its rows hold, for messages."""

    fields: str
    matches: Callable[[Mapping[str, Any]], bool]
    read: Read


def _by_row(read_row: Callable[[Row], RawRecord]) -> Read:
    """Reads a form whose every row is a record of its own."""

    def read(source: Source, rows: Iterable[Row], fail: Fail) -> Iterator[RawRecord]:
        for numbered in rows:
            try:
                record = read_row(numbered)
            except DataError as error:
                fail(source.error(str(error), numbered[0]))
            else:
                yield record

    return read


FORMS: dict[str, Form] = {
    "grouped": Form(grouped.FIELDS, grouped.matches, _by_row(grouped.read_row)),
    "trl": Form(trl.FIELDS, trl.matches, _by_row(trl.read_row)),
    "amopo": Form(released.FIELDS, released.matches, _by_row(released.read_row)),
    "helpsteer2": Form(helpsteer2.FIELDS, helpsteer2.matches, helpsteer2.read),
    "ultrafeedback": Form(ultrafeedback.FIELDS, ultrafeedback.matches, _by_row(ultrafeedback.read_row)),
}
FORMATS = ("auto", *FORMS)


def check_format(format: str) -> None:
    """Raise for a form that does not exist."""
    if format not in FORMATS:
        raise ValueError(f"unknown format {format!r}; known: {', '.join(FORMATS)}")


def detect(source: Source, first: Row) -> str:
    """The name of the form of this row."""
    number, row = first
    found = [name for name, form in FORMS.items() if form.matches(row)]
    if len(found) == 1:
        return found[0]
    fields = ", ".join(map(repr, row)) or "(none)"
    known = "; ".join(f"{name}: {form.fields}" for name, form in FORMS.items())
    if found:
        raise source.error(
            f"the fields {fields} fit several forms, {' and '.join(found)}; name one with --format. Forms: {known}",
            number,
        )
    raise source.error(f"cannot tell the format from the fields {fields}. Forms: {known}", number)


def read_raw(
    source: Source, format: str = "auto", *, fail: Fail = stop, on_rows: OnRows | None = None
) -> tuple[str, Iterator[RawRecord]]:
    """The form's name and its records, read as they are asked for. `on_rows(n)`: n rows were read."""
    check_format(format)
    errors: list[DataError] = []

    def note_first(error: DataError) -> None:
        if not errors:
            errors.append(error)
        fail(error)

    rows = _counted(source.rows(note_first), on_rows)
    first = next(rows, None)
    if first is None:
        raise source.error(f"not one row can be read; the first error: {errors[0]}")
    form = detect(source, first) if format == "auto" else format
    return form, FORMS[form].read(source, chain([first], rows), fail)


def _counted(rows: Iterator[Row], on_rows: OnRows | None) -> Iterator[Row]:
    count = 0
    for row in rows:
        count += 1
        if on_rows is not None and count % EVERY == 0:
            on_rows(count)
        yield row
    if on_rows is not None:
        on_rows(count)
