"""`amopo data convert`: the same data in another form, as JSON lines.

`--to grouped`: one line per prompt. `--to trl`: one line per pair, in the columns that TRL reads; pairs that tie and
texts that are the same make none. Scales are written into each row, so that what is written needs no `--scales`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

from amopo.cli.console import Console
from amopo.cli.counter import counter
from amopo.cli.data_options import check_choice, check_paths, score_options, source_options
from amopo.cli.inputs import read_scales
from amopo.cli.options import Option, Settings
from amopo.data.export import TARGETS, grouped_row, trl_rows
from amopo.data.output import HalfCharacters, check_target, write_rows
from amopo.data.pairs import STRATEGIES
from amopo.data.readers import ReadReport, all_objectives, iter_records, scan_scores
from amopo.data.scales import resolve_scales
from amopo.data.schema import DataError, PreferenceRecord, Scale
from amopo.data.sources import Source
from amopo.data.sources.steady import open_steady

DESCRIPTION = "Writes preference data in another form: grouped JSON lines, or TRL's columns."


def options() -> list[Option]:
    return [
        *source_options("IN OUT"),
        Option("to", str, f"the form to write: {', '.join(TARGETS)}", default="grouped"),
        *score_options(),
        Option("pairs", str, f"for trl, which responses are compared: {', '.join(STRATEGIES)}", default="best_worst"),
        Option("force", bool, "replace a file that exists", default=False),
    ]


def run(settings: Settings) -> None:
    console = Console(quiet=settings.quiet)
    source, target = check_paths(settings, "IN", "OUT")
    check_choice("to", settings.to, TARGETS)
    check_choice("pairs", settings.pairs, STRATEGIES)
    check_target(target, force=settings.force, source=source)
    scales = read_scales(settings.scales)
    report = ReadReport()
    with counter(console, "rows") as count:
        rows_of, objectives, others = source, settings.objectives, ()
        if not objectives:  # asked of the source in a pass of its own
            rows_of = open_steady(source)
            objectives, others = _all_objectives(rows_of, scales, settings.format, count)
        records = iter_records(
            rows_of, objectives=objectives, scales=scales, format=settings.format, report=report, on_rows=count
        )
        halves = HalfCharacters()
        rows, without = _write(records, target, settings, halves)
    console.say(f"{source}: {report.form}, {report}; objectives: {', '.join(objectives)}")
    if others:
        console.say(f"not written, since they hold no numbers: {', '.join(map(ascii, others))}")
    note = f"; {without} prompts give no pair (ties, or the same text)" if without else ""
    console.say(f"{target}: {rows} rows, {settings.to}{note}")
    for line in halves.lines():
        console.say(line)


def _all_objectives(
    source: Source, scales: Mapping[str, Scale], format: str, on_rows: Callable[[int], None]
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Every objective that the file scores, and what stands beside them."""
    scan = scan_scores(source, format=format, on_rows=on_rows)
    names = all_objectives(scan, source.name)
    try:
        resolve_scales(names, given=scales, declared=scan.declared)
    except DataError as error:
        raise DataError(
            f"{error}. These fields hold numbers: {', '.join(names)}; --objectives names those to keep",
            file=source.name,
        ) from None
    return names, scan.other_fields


def _write(
    records: Iterator[PreferenceRecord], target: str, settings: Settings, halves: HalfCharacters
) -> tuple[int, int]:
    """Counts of rows, and of prompts that gave none."""
    count = without = 0
    with write_rows(target) as write:
        for record in records:
            rows = [grouped_row(record)] if settings.to == "grouped" else trl_rows(record, strategy=settings.pairs)
            for row in rows:
                try:
                    halves.add(record.source, write(row))
                except DataError as error:
                    raise DataError(f"{record.label}: {error}") from None
            count += len(rows)
            without += not rows
        if not count:
            raise DataError(
                "no prompt gives a pair (all tie, or have the same text), so there is nothing to write; responses with "
                "different texts and scores are needed",
                file=settings.paths[0],
            )
    return count, without
