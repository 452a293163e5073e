"""`amopo report`: one page with the figures of a run, or of several on top of each other.

`RUN` is the output directory of `amopo train`, `amopo demo` or an `AMoPOTrainer`. Writes one HTML file that needs
nothing else, and its figures as SVG and PNG beside it. `report_after_run(folder, console)` is what the other commands
end with.
"""

from __future__ import annotations

import sys
from pathlib import Path

from amopo.cli.console import Console
from amopo.cli.options import Option, Settings
from amopo.report.text import inert

DESCRIPTION = "One page about a run, or about several side by side: figures, samples, settings."
PAGE = "report.html"


def options() -> list[Option]:
    return [
        Option("runs", list[str], "output directories", metavar="RUN [RUN ...]", required=True, positional=True),
        Option(
            "out",
            str | None,
            f"the page (default: {PAGE} in the run's folder; of several runs, in the current folder)",
            default=None,
            metavar="FILE.html",
        ),
    ]


def run(settings: Settings) -> None:
    from amopo.report.figures.panel import need_matplotlib
    from amopo.report.run import load_runs
    from amopo.report.write import check_out

    console = Console(quiet=settings.quiet)
    need_matplotlib()
    runs = load_runs(settings.runs)
    out = settings.out
    if out is None:
        out = runs[0].folder / PAGE if len(runs) == 1 else Path(PAGE)
    out = check_out(out)
    _write(runs, out, console)
    for found in runs:
        console.say(inert(f"{found.name}: {found.status}", line=True))
        for text in found.notes:
            console.say(inert(f"  note: {text}", line=True))
        for text in found.absent:
            console.say(inert(f"  not in the report: {text}", line=True))
    console.say(f"report: {inert(out, line=True)}")


def report_after_run(folder: Path, console: Console) -> None:
    """The report of a run that has just ended. What goes wrong here is said and costs nothing of the run."""
    from amopo.report.run import load_runs

    command = f"amopo report {folder}"
    try:
        from amopo.report.figures.panel import need_matplotlib

        need_matplotlib()
        out = _write(load_runs([folder]), folder / PAGE, console)
    except ImportError as error:
        console.say(f"no report: {error}; then: {command}")
    except Exception as error:
        print(f"amopo: the report could not be written ({error}); the run is complete. {command}", file=sys.stderr)
    else:
        console.say(f"report: {out}")


def _write(runs: list, out: Path, console: Console) -> Path:
    from amopo.report.write import write_report

    with console.bar("drawing") as bar:
        return write_report(runs, out, on_panel=bar.update)
