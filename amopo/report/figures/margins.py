"""Margins per objective over the steps, a panel each, the runs on top of each other."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

from amopo.report.compare import union_of_objectives
from amopo.report.figures.curves import in_words, line
from amopo.report.figures.panel import Figure, Legend, Panel, finish, label, style, whole_steps
from amopo.report.run import Run

KEY = "rewards/margins"
CAPTION = (
    "Reward of the chosen response minus that of the rejected one, per objective; the reward is beta times the mean "
    "log-prob of a token. Pale: as logged, a mean over the samples since the last log. Strong: smoothed. Large "
    "hollow marks: on held-out pairs, at step 0 before training. Above zero the model prefers the chosen response. "
    "Hollow marks that stay behind while the line climbs show a model that learns its training pairs by heart."
)


def build(runs: Sequence[Run]) -> Figure:
    panels = []
    for name in (*union_of_objectives(runs), None):
        key = KEY if name is None else f"{KEY}/{name}"
        shown = [(at, run) for at, run in enumerate(runs) if run.series(key) or run.held_out(key)]
        if not shown:
            continue
        alt = "; ".join(in_words(run.name, run.series(key)) for _, run in shown)
        title = "mean over objectives" if name is None else name
        panels.append(
            Panel(
                title,
                title,
                f"Margin over training steps. {alt}.",
                functools.partial(_draw, shown, key, len(runs) == 1),
            )
        )
    absent = [f"{run.name}: no margins were logged" for run in runs if not run.series(KEY)]
    return Figure("margins", "Margins per objective", CAPTION, panels, absent)


def _draw(shown: Sequence[tuple[int, Run]], key: str, alone: bool, axes: Any) -> Legend:
    legend: Legend = []
    for at, run in shown:
        look = style(at)
        series, held_out = run.series(key), run.held_out(key)
        if series:
            drawn = line(axes, series, look, index=at, of=len(shown))
            legend.append((drawn, "training pairs" if alone else label(run.name)))
        if held_out:
            drawn = axes.plot(
                held_out.steps,
                held_out.values,
                color=look["color"],
                linestyle="",
                marker="D" if alone else look["marker"],
                markersize=8,
                markerfacecolor="white",
                markeredgewidth=1.5,
                zorder=3,
                clip_on=False,
            )[0]
            if alone:
                legend.append((drawn, "held-out pairs"))
    finish(axes, ylabel="margin", zero=True)
    whole_steps(axes)
    return legend
