"""Two objectives against each other: a point per run before and after, for every pair of objectives."""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Sequence
from typing import Any

from amopo.report.changes import Change
from amopo.report.compare import union_of_objectives
from amopo.report.figures.panel import Figure, Legend, Panel, finish, label, style
from amopo.report.run import Run

CAPTION = (
    "Two objectives against each other; further up and further right is better in both. Hollow: before training. "
    "Filled: after. The arrow joins the two, whiskers are standard errors. With several runs a dashed grey "
    "staircase bounds what they reached: no run beats one on it in both objectives of the panel (Pareto-optimal); "
    "below it, some run does. With one run the arrow's direction is what there is to see: up and right gains both, "
    "any other trades."
)
KINDS = {"scores": "generated score", "margins": "held-out margin"}


def build(runs: Sequence[Run]) -> Figure:
    panels, absent = [], []
    # Scores of what models write say more than margins; margins are drawn where a run has no scores.
    kinds = [kind for kind in KINDS if any(getattr(run, kind) for run in runs)]
    if "scores" in kinds and all(run.scores for run in runs):
        kinds = ["scores"]
    for kind in kinds:
        for one, two in itertools.combinations(union_of_objectives(runs), 2):
            shown = []
            for at, run in enumerate(runs):
                found = getattr(run, kind)
                if one in found and two in found and _finite(found[one], found[two]):
                    shown.append((at, run.name, found[one], found[two]))
            if not shown:
                absent.append(f"{KINDS[kind]} of {label(one)} and {label(two)}: no run has both")
                continue
            words = [
                f"{name}: from {x.before:.2f}, {y.before:.2f} to {x.after:.2f}, {y.after:.2f}"
                for _, name, x, y in shown
            ]
            title = f"{label(one, 23)} · {label(two, 23)}"
            alt = f"{KINDS[kind]} of {label(one)} (across) and {label(two)} (up). {'; '.join(words)}."
            draw = functools.partial(_draw, shown, (one, two), KINDS[kind], len(runs) > 1)
            panels.append(Panel(f"{kind}-{one}-{two}", title, alt, draw, 3.6))
        absent += [f"{run.name}: has no {KINDS[kind]} before and after" for run in runs if not getattr(run, kind)]
    if not kinds:
        absent += [f"{run.name}: nothing was measured before and after" for run in runs]
    return Figure("pareto", "Objectives against each other", CAPTION, panels, absent)


def _finite(*changes: Change) -> bool:
    return all(math.isfinite(change.difference) for change in changes)


def front(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """Those that no other beats in one coordinate without losing in the other, from left to right."""
    kept: list[tuple[float, float]] = []
    for x, y in sorted(set(points), key=lambda point: (-point[0], -point[1])):
        if not kept or y > kept[-1][1]:
            kept.append((x, y))
    return kept[::-1]


def _draw(
    shown: Sequence[tuple[int, str, Change, Change]], names: tuple[str, str], unit: str, several: bool, axes: Any
) -> Legend:
    legend: Legend = []
    for at, name, x, y in shown:
        look = style(at)
        marker = {"color": look["color"], "marker": look["marker"], "markersize": 8, "linestyle": ""}
        whiskers = {"ecolor": look["color"], "elinewidth": 0.8, "capsize": 2}
        for when, face in (("before", "white"), ("after", look["color"])):
            ends = [(getattr(change, when), getattr(change, f"{when}_error") or 0.0) for change in (x, y)]
            (left, left_error), (up, up_error) = ends
            drawn = axes.errorbar(
                left,
                up,
                xerr=left_error or None,
                yerr=up_error or None,
                markerfacecolor=face,
                markeredgewidth=1.4,
                zorder=3,
                **marker,
                **whiskers,
            )
            if when == "after" or not several:
                legend.append((drawn.lines[0], label(name) if several else when))
        axes.annotate(
            "",
            xy=(x.after, y.after),
            xytext=(x.before, y.before),
            arrowprops={"arrowstyle": "->", "color": look["color"], "linewidth": 1.2, "shrinkA": 6, "shrinkB": 6},
        )
    axes.margins(0.16)
    if len(shown) > 1:
        reached = front([(x.after, y.after) for _, _, x, y in shown])
        (left, _), (low, _) = axes.get_xlim(), axes.get_ylim()
        corners = [(left, reached[0][1])]
        for (x0, y0), (_, y1) in itertools.pairwise(reached):
            corners += [(x0, y0), (x0, y1)]
        corners += [reached[-1], (reached[-1][0], low)]
        edge = axes.plot(*zip(*corners, strict=True), color="#8c8c8c", linestyle=(0, (2, 2)), linewidth=1, zorder=1)[0]
        axes.set_xlim(left=left)
        axes.set_ylim(bottom=low)
        legend.append((edge, "reached"))
    finish(axes, xlabel=f"{label(names[0], 30)}, {unit}", ylabel=f"{label(names[1], 26)}, {unit}")
    axes.grid(axis="x", color="#e4e4e4", linewidth=0.6)
    return legend
