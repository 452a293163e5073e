"""The weights of the objectives over the steps: stacked, and each with its spread."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

from amopo.report.figures.curves import in_words, line
from amopo.report.figures.panel import GREYS, HATCHES, Figure, Legend, Panel, finish, label, style, whole_steps
from amopo.report.run import Run, Series
from amopo.report.smoothing import smooth

MEAN, SPREAD = "amopo/alpha", "amopo/alpha_std"
CAPTION = (
    "Alpha, the share of the loss that each objective has, as its mean over samples. Stacked, the shares fill the "
    "height; a whisker in the middle of a band is one standard deviation over the samples to each side. The other "
    "panels show the same means and deviations by themselves, closer. Even shares with long whiskers say that "
    "samples differ in what weighs most, not that the weights do nothing."
)
WHISKERS = 5


def build(runs: Sequence[Run]) -> Figure:
    panels, absent = [], []
    for run in runs:
        names = [name for name in run.objectives if run.series(f"{MEAN}/{name}")]
        if not names:
            absent.append(f"{run.name}: no weights were logged")
            continue
        words = "; ".join(in_words(name, run.series(f"{MEAN}/{name}")) for name in names)
        prefix = f"{run.name}\n" if len(runs) > 1 else ""
        alt = f"Weights of the objectives over training steps, stacked to one, run {run.name}. {words}."
        draw = functools.partial(_stacked, run, names)
        panels.append(Panel(f"stacked-{run.name}", f"{prefix}weights, stacked", alt, draw))
        for key, title in ((MEAN, "weights"), (SPREAD, "spread of the weights")):
            if not any(run.series(f"{key}/{name}") for name in names):
                absent.append(f"{run.name}: the spread of the weights was not logged")
                continue
            words = "; ".join(in_words(name, run.series(f"{key}/{name}")) for name in names)
            alt = f"{title[0].upper()}{title[1:]} over training steps, one line per objective, run {run.name}. {words}."
            draw = functools.partial(_lines, run, names, key)
            panels.append(Panel(f"{title}-{run.name}", prefix + title, alt, draw))
    return Figure("alpha", "Weights of the objectives", CAPTION, panels, absent)


def _spread_at(run: Run, name: str, means: Series) -> list[float]:
    by_step = dict(smooth(run.series(f"{SPREAD}/{name}")).finite)
    return [by_step.get(step, 0.0) for step in means.steps]


def _stacked(run: Run, names: Sequence[str], axes: Any) -> Legend:
    means = [smooth(run.series(f"{MEAN}/{name}")) for name in names]
    # one step may have a weight that is not a number; then no band is drawn there
    steps = sorted(set.intersection(*({step for step, _ in series.finite} for series in means)))
    if not steps:
        axes.text(0.5, 0.5, "no step with finite weights", transform=axes.transAxes, ha="center", va="center")
        return []
    bands = [dict(series.finite) for series in means]
    heights = [[band[step] for step in steps] for band in bands]
    drawn = []
    floor = [0.0] * len(steps)
    every = max(1, -(-len(steps) // WHISKERS))
    for at, (name, height, series) in enumerate(zip(names, heights, means, strict=True)):
        top = [low + up for low, up in zip(floor, height, strict=True)]
        drawn.append(
            axes.fill_between(
                steps,
                floor,
                top,
                facecolor=GREYS[at % len(GREYS)],
                hatch=HATCHES[at % len(HATCHES)],
                edgecolor="black",
                linewidth=0.6,
                step="mid" if len(steps) == 1 else None,
            )
        )
        spread = dict(zip(series.steps, _spread_at(run, name, series), strict=True))
        # each band's whiskers stand beside those of the next, not on one line with them, and none on the frame
        first = every * (1 + at % 2) // 2
        places = [
            i for i in range(len(steps)) if i % every == first % every and 0 < i < len(steps) - 1 or len(steps) < 3
        ]
        for cap, color, width in ((4.2, "white", 4.0), (3.4, "black", 1.4)):
            axes.errorbar(
                [steps[i] for i in places],
                [(floor[i] + top[i]) / 2 for i in places],
                yerr=[spread.get(steps[i], 0.0) for i in places],
                fmt="none",
                ecolor=color,
                elinewidth=width,
                capsize=cap,
                capthick=width,
                zorder=3,
            )
        floor = top
    axes.set_ylim(0, max(1.0, *floor))
    if len(steps) > 1:
        axes.set_xlim(steps[0], steps[-1])
    finish(axes, ylabel="share of the loss")
    axes.grid(False)
    whole_steps(axes)
    # top of the stack first
    return [(band, label(name)) for band, name in zip(drawn, names, strict=True)][::-1]


def _lines(run: Run, names: Sequence[str], key: str, axes: Any) -> Legend:
    legend: Legend = []
    for at, name in enumerate(names):
        series = run.series(f"{key}/{name}")
        if series:
            legend.append((line(axes, series, style(at), index=at, of=len(names), raw=False), label(name)))
    finish(axes, ylabel="alpha" if key == MEAN else "standard deviation of alpha")
    whole_steps(axes)
    return legend
