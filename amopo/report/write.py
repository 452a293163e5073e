"""A report on disk: the page, and its pictures beside it.

Contract
--------
`write_report(runs, out)` draws every panel, writes `out` (an .html file) and the folder `<name of out>_figures` with
each panel as SVG and PNG, and returns the page's path. Pictures of an earlier report of that name are removed. The page
is written last and as a whole. `on_panel(done, total)` is called after each panel.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Sequence
from pathlib import Path

from amopo.report.figures import build_figures
from amopo.report.figures.panel import need_matplotlib, save
from amopo.report.html import page
from amopo.report.run import Run

NAME = re.compile(r"\d{2}-[a-z]+-\d{2,}(-[a-z0-9-]*)?\.(svg|png)")


def check_out(out: str | Path) -> Path:
    """The page's path, if it can be written; else ValueError or OSError before any work."""
    out = Path(out)
    if out.suffix.lower() not in (".html", ".htm"):
        raise ValueError(f"--out: {out} must end in .html")
    if out.is_dir():
        raise ValueError(f"--out: {out} is a folder; name a file in it")
    if not out.absolute().parent.is_dir():
        raise ValueError(f"--out: the folder of {out} does not exist; make it first")
    if not os.access(out.absolute().parent, os.W_OK):
        raise PermissionError(f"--out: the folder of {out} cannot be written")
    return out


def write_report(runs: Sequence[Run], out: str | Path, *, on_panel: Callable[[int, int], None] | None = None) -> Path:
    need_matplotlib()
    out = check_out(out)
    figures = build_figures(runs)
    folder = out.parent / f"{out.stem}_figures"
    folder.mkdir(exist_ok=True)
    for old in folder.iterdir():
        if NAME.fullmatch(old.name):
            old.unlink()
    total = sum(len(figure.panels) for figure in figures)
    pictures: dict[str, list] = {}
    done, glyphs = 0, False
    for place, figure in enumerate(figures, 1):
        for at, panel in enumerate(figure.panels, 1):
            name = f"{place:02d}-{figure.key}-{at:02d}{slug(panel.key)}"
            saved = save(panel, folder, name)
            pictures.setdefault(figure.key, []).append((panel, saved.source, f"{folder.name}/{saved.svg.name}"))
            glyphs = glyphs or saved.without_glyph
            done += 1
            if on_panel is not None:
                on_panel(done, total)
    notes = ["Names hold characters that the figures' font lacks; boxes stand for them there."] if glyphs else []
    unfinished = out.with_name(out.name + ".tmp")
    unfinished.write_text(page(runs, figures, pictures, notes=notes), encoding="utf-8")
    os.replace(unfinished, out)
    return out


def slug(text: str) -> str:
    """What of a name can stand in a file's name, after a dash."""
    words = re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")[:48].strip("-")
    return f"-{words}" if words else ""
