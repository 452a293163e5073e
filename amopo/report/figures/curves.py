"""Lines over the optimizer steps: raw values pale, a running mean on top (see `amopo.report.smoothing`)."""

from __future__ import annotations

from typing import Any

from amopo.report.figures.panel import PALE, marks
from amopo.report.run import Series
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


def in_words(name: str, series: Series) -> str:
    """`name: 0.10 at step 2, 0.85 at step 48` for a picture's text alternative; both ends smoothed."""
    found = smooth(series).finite
    if not found:
        return f"{name}: no finite value"
    (first, begin), (last, end) = found[0], found[-1]
    return f"{name}: {begin:.3g} at step {first}, {end:.3g} at step {last}"
