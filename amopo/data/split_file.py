"""A file of preference data divided into a training and an evaluation file, by prompt.

`split_file(source, train, evaluation, eval_fraction=0.1, seed=0) -> SplitReport`. Rows go as they are, one JSON line
each, in their form and order; rows that belong to one prompt stay together. The prompts held out are those that
`split_records` holds out from the same file with the same seed. Scores are not looked at.

Two passes, of the same rows (see `amopo.data.sources.steady`); in memory 8 bytes per record for the ranks of their
prompts, three times that while they are sorted. A row that cannot be read ends it before anything is written. Rows
without an id are called by their number in a file, so they have other names in the parts.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterator
from dataclasses import dataclass, field
from os import PathLike

from amopo.data.output import HalfCharacters, write_rows
from amopo.data.prompts import parse_prompt
from amopo.data.readers.forms import OnRows, read_raw
from amopo.data.readers.raw import RawRecord
from amopo.data.schema import DataError
from amopo.data.sources import Source
from amopo.data.sources.steady import open_steady
from amopo.data.split import HeldOut, check_eval_fraction, prompt_rank


@dataclass(frozen=True)
class SplitReport:
    """Counts of the two files: distinct prompts, rows."""

    form: str
    train_prompts: int
    train_rows: int
    eval_prompts: int
    eval_rows: int
    half_characters: HalfCharacters = field(default_factory=HalfCharacters)


def split_file(
    source: str | PathLike[str],
    train: str | PathLike[str],
    evaluation: str | PathLike[str],
    *,
    eval_fraction: float,
    seed: int,
    format: str = "auto",
    on_rows: OnRows | None = None,
) -> SplitReport:
    """Writes both files, replacing what stands there (see `amopo.data.output.check_target`)."""
    check_eval_fraction(eval_fraction)
    if eval_fraction == 0:
        raise ValueError("eval_fraction is 0, so there is nothing to hold out; give a share above 0")
    rows = open_steady(source)
    form, ranked = _ranked(rows, format, seed, on_rows)
    ranks = array("q", (rank for _, rank in ranked))
    try:
        chosen = HeldOut.choose(ranks, eval_fraction=eval_fraction, seed=seed)
    except DataError as error:
        raise DataError(str(error), file=rows.name) from None
    written = {True: 0, False: 0}
    halves = HalfCharacters()
    with write_rows(train) as write_train, write_rows(evaluation) as write_evaluation:
        for raw, rank in _ranked(rows, form, seed, on_rows)[1]:
            is_held_out = rank <= chosen.last_rank
            for number, row in raw.rows:
                try:
                    half = (write_evaluation if is_held_out else write_train)(row)
                except DataError as error:
                    raise rows.error(str(error), number) from None
                halves.add(f"{rows.name}, {rows.unit} {number}", half)
                written[is_held_out] += 1
    return SplitReport(form, chosen.prompts - chosen.count, written[False], chosen.count, written[True], halves)


def _ranked(
    source: Source, format: str, seed: int, on_rows: OnRows | None
) -> tuple[str, Iterator[tuple[RawRecord, int]]]:
    form, raws = read_raw(source, format, on_rows=on_rows)

    def ranked() -> Iterator[tuple[RawRecord, int]]:
        for raw in raws:
            try:
                yield raw, prompt_rank(parse_prompt(raw.prompt), seed=seed)
            except DataError as error:
                raise source.error(str(error), raw.row) from None

    return form, ranked()
