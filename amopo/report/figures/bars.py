"""Before and after training as pairs of bars, a panel for each table of a run."""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from typing import Any

from amopo.report.changes import Section
from amopo.report.figures.panel import HEIGHT, Figure, Legend, Panel, finish, tick
from amopo.report.picture import AFTER, BEFORE
from amopo.report.run import Run

CAPTION = (
    "Measured before (hatched) and after training (solid); whiskers are standard errors, where they are known. "
    "Panels of one table share their scale over all runs."
)
WIDTH = 0.38


def build(runs: Sequence[Run]) -> Figure:
    titles = list(dict.fromkeys(section.title for run in runs for section in run.sections))
    panels = []
    for title in titles:
        shown = [(run, section) for run in runs for section in run.sections if section.title == title]
        limits = _limits([section for _, section in shown])
        for run, section in shown:
            words = "; ".join(
                f"{change.name}: {change.before:.{change.digits}f} before, {change.after:.{change.digits}f} after"
                for change in section.changes
            )
            where = f"{run.name}\n" if len(runs) > 1 else ""
            panels.append(
                Panel(
                    f"{title}-{run.name}",
                    where + title,
                    f"{title}, run {run.name}. {words}.",
                    functools.partial(_draw, section, limits),
                    HEIGHT,
                )
            )
    absent = [f"{run.name}: nothing was measured before and after" for run in runs if not run.sections]
    return Figure("bars", "Before and after", CAPTION, panels, absent)


def _limits(sections: Sequence[Section]) -> tuple[float, float]:
    """Ends of the common axis, with room for the numbers on the bars; zero is always on it."""
    ends = [0.0]
    for section in sections:
        for change in section.changes:
            for value, error in ((change.before, change.before_error), (change.after, change.after_error)):
                spread = error if error is not None and math.isfinite(error) else 0.0
                ends += [end for end in (value - spread, value + spread) if math.isfinite(end)]
    low, high = min(ends), max(ends)
    room = 0.14 * (high - low or 1.0)
    return (low - room if low < 0 else 0.0, high + room if high > 0 else 0.0)


def _draw(section: Section, limits: tuple[float, float], axes: Any) -> Legend:
    legend: Legend = []
    places = range(len(section.changes))
    for offset, name, color, hatch in ((-WIDTH / 2, "before", BEFORE, "////"), (WIDTH / 2, "after", AFTER, "")):
        values = [getattr(change, name) for change in section.changes]
        errors = [getattr(change, f"{name}_error") or 0.0 for change in section.changes]
        drawn = axes.bar(
            [place + offset for place in places],
            [value if math.isfinite(value) else 0.0 for value in values],
            WIDTH,
            color=color,
            edgecolor="black",
            linewidth=0.8,
            hatch=hatch,
            yerr=[error if math.isfinite(error) else 0.0 for error in errors] if any(errors) else None,
            error_kw={"elinewidth": 1.0, "capsize": 2},
        )
        texts = [f"{value:.2f}".replace("-0.00", "0.00") for value in values]
        axes.bar_label(drawn, texts, padding=2, fontsize=8)
        legend.append((drawn, name))
    axes.set_ylim(*limits)
    finish(axes, xlabel="", zero=True)
    axes.set_xticks(list(places), [tick(change.name) for change in section.changes], fontsize=8.5)
    return legend
