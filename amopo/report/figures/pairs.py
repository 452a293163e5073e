"""Two objectives' margins over the steps in one panel, for every pair of objectives."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Sequence
from typing import Any

from amopo.report.compare import union_of_objectives
from amopo.report.figures.curves import in_words, line, two_sided, two_sided_legend
from amopo.report.figures.margins import KEY
from amopo.report.figures.panel import Figure, Legend, Panel, finish, label, style, whole_steps
from amopo.report.run import Run

CAPTION = (
    "The smoothed margins of two objectives at a time, with what one run logged pale behind them. Where both lines "
    "climb, neither objective pays for the other; where one falls while the other climbs, the two compete for the "
    "same responses."
)


def build(runs: Sequence[Run]) -> Figure:
    panels, absent = [], []
    for one, two in itertools.combinations(union_of_objectives(runs), 2):
        shown = [(at, run) for at, run in enumerate(runs) if run.series(f"{KEY}/{one}") and run.series(f"{KEY}/{two}")]
        if not shown:
            absent.append(f"{label(one)} and {label(two)}: no run has logged both")
            continue
        words = [
            in_words(f"{run.name}, {name}", run.series(f"{KEY}/{name}")) for _, run in shown for name in (one, two)
        ]
        title = f"{label(one, 23)} · {label(two, 23)}"
        alt = f"Margins of two objectives over training steps. {'; '.join(words)}."
        panels.append(Panel(f"{one}-{two}", title, alt, functools.partial(_draw, shown, (one, two), len(runs) > 1)))
    if len(union_of_objectives(runs)) < 2:
        absent.append("fewer than two objectives, so there is no pair")
    return Figure("pairs", "Margins of two objectives at a time", CAPTION, panels, absent)


def _draw(shown: Sequence[tuple[int, Run]], names: tuple[str, str], several: bool, axes: Any) -> Legend:
    legend: Legend = []
    for at, run in shown:
        for place, name in enumerate(names):
            look = two_sided(at, place) if several else style(place)
            series = run.series(f"{KEY}/{name}")
            # raw values of several runs would hide each other
            drawn = line(axes, series, look, index=2 * at + place, of=2 * len(shown), raw=not several)
            legend.append((drawn, label(name)))
    finish(axes, ylabel="margin", zero=True)
    whole_steps(axes)
    return two_sided_legend(shown, names, several=True) if several else legend
