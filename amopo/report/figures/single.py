"""A panel of one logged number, the runs on top of each other."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

from amopo.report.figures.curves import in_words, line
from amopo.report.figures.panel import Legend, Panel, finish, label, style, whole_steps
from amopo.report.run import Run

# Set, or a peak so far: smoothing would only blur them.
AS_THEY_ARE = ("learning_rate", "amopo/peak_memory_gib")


def panel_of(runs: Sequence[Run], key: str, title: str, unit: str, *, from_zero: bool = False) -> Panel | None:
    """None if no run has logged it."""
    shown = [(at, run) for at, run in enumerate(runs) if run.series(key)]
    if not shown:
        return None
    words = "; ".join(in_words(run.name, run.series(key)) for _, run in shown)
    return Panel(
        title,
        title,
        f"{title[0].upper()}{title[1:]} over training steps. {words}.",
        functools.partial(_draw, shown, key, unit, from_zero, len(runs) > 1),
        2.8,
    )


def absent_of(runs: Sequence[Run], metrics: Sequence[tuple[str, str, str]]) -> list[str]:
    return [f"{run.name}: no {title} was logged" for run in runs for key, title, _ in metrics if not run.series(key)]


def _draw(shown: Sequence[tuple[int, Run]], key: str, unit: str, from_zero: bool, several: bool, axes: Any) -> Legend:
    legend: Legend = []
    for at, run in shown:
        smoothed = key not in AS_THEY_ARE
        drawn = line(axes, run.series(key), style(at), index=at, of=len(shown), smoothed=smoothed)
        legend.append((drawn, label(run.name)))
    finish(axes, ylabel=unit)
    if from_zero:
        axes.set_ylim(0, 1.08 * max(value for _, run in shown for _, value in run.series(key).finite) or 1)
    whole_steps(axes)
    return legend if several else []
