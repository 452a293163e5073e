"""The before/after table.

`as_text(sections)` is plain text for logs and files. `show(sections)` prints: with rich on a terminal if it is
installed, else the plain text. What fell is marked as such in both, in words and not by colour alone.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import TextIO

from amopo.report.changes import Change, Section

HEADER = ("", "before", "after", "change", "")


def as_text(sections: Sequence[Section]) -> str:
    rows = [row for section in sections for row in (_cells(change) for change in section.changes)]
    widths = [max(len(cell) for cell in column) for column in zip(HEADER, *rows, strict=True)]
    widths[0] = max([widths[0], *(len(section.title) for section in sections)])
    lines = []
    for section in sections:
        lines.append(_line((section.title, *HEADER[1:]), widths))
        lines.append("-" * len(_line(("",) * 5, widths, strip=False)))
        lines += [_line(_cells(change), widths) for change in section.changes]
        lines.append("")
    return "\n".join(lines)


def show(sections: Sequence[Section], *, file: TextIO | None = None) -> None:
    file = file or sys.stdout
    if file.isatty():
        try:
            _show_rich(sections, file)
            return
        except ImportError:  # rich is an extra; the plain table says the same
            pass
    file.write(as_text(sections))
    file.flush()


def _cells(change: Change) -> tuple[str, str, str, str, str]:
    digits = change.digits
    relative = "" if change.relative is None else f" ({change.relative:+.0%})"
    error = "" if change.error is None else f" ± {change.error:.{digits}f}"
    return (
        change.name,
        f"{change.before:.{digits}f}",
        f"{change.after:.{digits}f}",
        f"{change.difference:+.{digits}f}{error}{relative}",
        change.direction if change.direction != "same" else "",
    )


def _line(cells: Sequence[str], widths: Sequence[int], *, strip: bool = True) -> str:
    first, *numbers, last = cells
    padded = [f"{first:<{widths[0]}}"]
    padded += [f"{cell:>{width}}" for cell, width in zip(numbers, widths[1:-1], strict=True)]
    line = "  ".join([*padded, f"{last:<{widths[-1]}}"])
    return line.rstrip() if strip else line


def _show_rich(sections: Sequence[Section], file: TextIO) -> None:
    from rich.console import Console
    from rich.table import Table

    console = Console(file=file)
    for section in sections:
        table = Table(title=section.title, title_justify="left", title_style="bold")
        table.add_column("")
        for name in HEADER[1:4]:
            table.add_column(name, justify="right")
        table.add_column("")
        for change in section.changes:
            *cells, direction = _cells(change)
            style = {"rose": "green", "fell": "bold red", "unclear": "dim"}.get(direction, "")
            table.add_row(*cells, direction, style=style)
        console.print(table)
