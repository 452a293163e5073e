"""One small picture, and how it is drawn and saved.

Contract
--------
`Panel(key, title, alt, draw)`: `draw(axes)` draws into matplotlib axes and returns the legend as (handle, label) pairs,
which goes below the plot, where it hides nothing. A title may have two lines. `alt` says in words and numbers what the
picture shows.
`Figure(key, title, caption, panels, absent)` groups the panels that are read together.
`Saved = save(panel, folder, name)` writes `name.svg` and `name.png` and returns their paths, the SVG's text, and the
characters for which there was no glyph. The same panel gives the same bytes.

Objectives and runs are told apart by dash and marker as well as by colour, fills by hatching, so that a print in black
and white reads the same. Text is drawn as it stands: no TeX in names. Needs matplotlib (extra `plot`), imported when
something is drawn; it runs with its default style whatever the user's, and without a display.
"""

from __future__ import annotations

import io
import textwrap
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from amopo.report.picture import STYLES
from amopo.report.text import inert, shorten

WIDTH, HEIGHT = 4.8, 3.2  # inches, legend excluded
LEGEND_ROW = 0.19
DPI = 160
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "<", ">", "*")
HATCHES = ("", "////", "....", "\\\\\\\\", "xxxx", "----", "++++", "oo")
GREYS = ("#404040", "#d9d9d9", "#8c8c8c", "#f2f2f2", "#b3b3b3", "#666666")
LONGEST_TITLE = 40
PALE = 0.35  # opacity of what stands behind
Legend = list[tuple[Any, str]]


@dataclass(frozen=True)
class Panel:
    key: str  # part of the file's name
    title: str
    alt: str
    draw: Callable[[Any], Legend]
    height: float = HEIGHT


@dataclass(frozen=True)
class Figure:
    key: str
    title: str
    caption: str
    panels: Sequence[Panel] = ()
    absent: Sequence[str] = field(default_factory=tuple)


@dataclass(frozen=True)
class Saved:
    svg: Path
    png: Path
    source: str
    without_glyph: bool


def need_matplotlib() -> None:
    try:
        import matplotlib.figure  # noqa: F401
    except ImportError:
        raise ImportError("the report's figures need matplotlib: pip install 'amopo[plot]'") from None


def style(index: int) -> dict[str, Any]:
    """Colour, marker and dash; no two of the first thirty agree in marker and dash."""
    color, _, _ = STYLES[index % len(STYLES)]
    _, _, dash = STYLES[(index + index // len(MARKERS)) % len(STYLES)]
    return {"color": color, "linestyle": dash, "marker": MARKERS[index % len(MARKERS)]}


def label(text: str, length: int = 44) -> str:
    """A name as it is drawn: harmless, words apart, of bounded length."""
    return shorten(inert(text, line=True).replace("_", " ").strip() or "(no name)", length)


def tick(text: str) -> str:
    return "\n".join(textwrap.wrap(label(text, 36), 13)[:3])


def title_lines(text: str) -> list[str]:
    return [label(line, LONGEST_TITLE) for line in textwrap.wrap(label(text, 2 * LONGEST_TITLE), LONGEST_TITLE)][:2]


def marks(count: int, index: int, of: int) -> tuple[int, int] | None:
    """Which points of a line carry markers: each line begins elsewhere, so that lines that coincide show apart."""
    step = max(1, count // 8)
    return (index * step // max(1, of) % max(1, count), step)


def finish(axes: Any, *, xlabel: str = "optimizer step", ylabel: str = "", zero: bool = False) -> None:
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="y", color="#e4e4e4", linewidth=0.6)
    axes.set_axisbelow(True)
    if zero:
        axes.axhline(0, color="black", linewidth=0.8, zorder=1.5)
    axes.set_xlabel(xlabel)
    axes.set_ylabel(ylabel)


def whole_steps(axes: Any) -> None:
    from matplotlib.ticker import MaxNLocator

    axes.xaxis.set_major_locator(MaxNLocator(nbins=6, integer=True))


def save(panel: Panel, folder: Path, name: str) -> Saved:
    import matplotlib
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure as Canvas

    with matplotlib.rc_context(), warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(
            {"text.parse_math": False, "svg.hashsalt": name, "font.size": 10, "hatch.linewidth": 0.7}
        )
        canvas = Canvas(figsize=(WIDTH, panel.height), layout="constrained")
        FigureCanvasAgg(canvas)
        axes = canvas.subplots()
        legend = panel.draw(axes)
        title = "\n".join(wrapped for text in panel.title.split("\n") for wrapped in title_lines(text))
        axes.set_title(title, loc="left", fontsize=10.5, fontweight="bold")
        if legend:
            columns = 1 if max(len(text) for _, text in legend) > 24 else 2 if len(legend) != 3 else 3
            if columns == 3 and sum(len(text) for _, text in legend) > 40:
                columns = 2
            canvas.set_size_inches(WIDTH, panel.height + LEGEND_ROW * -(-len(legend) // columns))
            handles, texts = zip(*legend, strict=True)
            canvas.legend(
                handles,
                texts,
                loc="outside lower left",
                ncols=columns,
                frameon=False,
                fontsize=9,
                handlelength=3.2,
                borderaxespad=0.2,
            )
        # laid out once and kept, since each of the two files would do it again, for half of the time
        canvas.get_layout_engine().execute(canvas)
        canvas.set_layout_engine("none")
        svg, png = folder / f"{name}.svg", folder / f"{name}.png"
        source = io.StringIO()
        canvas.savefig(source, format="svg", facecolor="white", metadata={"Date": None, "Creator": None})
        svg.write_text(source.getvalue(), encoding="utf-8")
        canvas.savefig(png, dpi=DPI, facecolor="white", metadata={"Software": None})
    glyphs = any("Glyph" in str(warning.message) for warning in caught)
    return Saved(svg, png, source.getvalue(), glyphs)
