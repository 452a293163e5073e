"""Lines over the optimizer steps: raw values pale, a running mean on top (see `amopo.report.smoothing`)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from amopo.report.figures.panel import PALE, Legend, label, marks, style
from amopo.report.run import Run, Series
from amopo.report.smoothing import smooth


def line(
    axes: Any,
    series: Series,
    look: dict[str, Any],
    *,
    index: int = 0,
    of: int = 1,
    raw: bool = True,
    smoothed: bool = True,
) -> Any:
    """Draws one series, smoothed over raw; returns the handle for the legend."""
    mean = smooth(series) if smoothed else series
    if raw and mean.values != series.values:
        axes.plot(series.steps, series.values, alpha=PALE, linewidth=0.9, color=look["color"], ls=look["linestyle"])
    return axes.plot(
        mean.steps,
        mean.values,
        linewidth=1.7,
        markersize=4.5,
        markevery=marks(len(mean.steps), index, of),
        **look,
    )[0]


def two_sided(index: int, side: int) -> dict[str, Any]:
    """The look of one of two lines of a run: colour and marker are the run's; the second is dotted and hollow."""
    look = style(index)
    hollow = {"linestyle": ":", "markerfacecolor": "white"}
    return look | (hollow if side else {"linestyle": "-", "markerfacecolor": look["color"]})


def two_sided_legend(shown: Sequence[tuple[int, Run]], sides: Sequence[str], *, several: bool) -> Legend:
    """What solid and dotted mean, then the runs if the report is of several."""
    from matplotlib.lines import Line2D

    if not several:
        return [(Line2D([], [], **two_sided(0, side)), label(name)) for side, name in enumerate(sides)]
    # lines without a run's marker, then runs without a line: the two are read separately
    legend: Legend = [
        (Line2D([], [], color="black", linestyle=dash), label(name)) for dash, name in zip("-:", sides, strict=True)
    ]
    return legend + [(Line2D([], [], **{**style(at), "linestyle": ""}), label(run.name)) for at, run in shown]


def in_words(name: str, series: Series) -> str:
    """`name: 0.10 at step 2, 0.85 at step 48` for a picture's text alternative; both ends smoothed."""
    found = smooth(series).finite
    if not found:
        return f"{name}: no finite value"
    (first, begin), (last, end) = found[0], found[-1]
    return f"{name}: {begin:.3g} at step {first}, {end:.3g} at step {last}"
