"""The picture of a run: what was reached, and how the margins grew.

`draw(path, section, curves, ...)` writes one PNG with two panels: bars of the section's changes (before hatched, after
solid, standard errors as whiskers), and one line per objective over the optimizer steps. Objectives differ by marker
and dash as well as by shade, so that the picture reads in black and white. `limits` fixes the ends of the bars' axis,
for scores the ends of their scale; without it the axis fits the bars.
`margin_curves(log_history, objectives)` takes the lines from what a trainer has logged.
Needs matplotlib (extra `plot`); it is imported here only, with a backend that needs no display.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from amopo.report.changes import Section

Curve = list[tuple[float, float]]

# Dark to light, each with its own marker and dash.
STYLES = (
    ("#000000", "o", "-"),
    ("#1b6ca8", "s", "--"),
    ("#c0504d", "^", "-."),
    ("#7f7f7f", "D", ":"),
    ("#4f9d69", "v", (0, (5, 1))),
    ("#8064a2", "P", (0, (3, 1, 1, 1))),
)
BEFORE, AFTER = "#d9d9d9", "#1b6ca8"


def margin_curves(
    log_history: Sequence[Mapping[str, Any]], objectives: Sequence[str], *, metric: str = "rewards/margins"
) -> dict[str, Curve]:
    """Per objective the points (step, value) of `metric/objective`; objectives that were never logged are left out."""
    curves = {}
    for name in objectives:
        key = f"{metric}/{name}"
        points = [(float(row["step"]), float(row[key])) for row in log_history if key in row and "step" in row]
        if points:
            curves[name] = points
    return curves


def draw(
    path: str | Path,
    section: Section,
    curves: Mapping[str, Curve],
    *,
    title: str = "",
    unit: str = "score",
    limits: tuple[float, float] | None = None,
    curve_label: str = "reward margin",
) -> Path:
    """Writes the PNG and returns its path."""
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError:
        raise ImportError("drawing needs matplotlib: pip install 'amopo[plot]'") from None
    path = Path(path)
    figure = Figure(figsize=(11, 4.2), layout="constrained")
    FigureCanvasAgg(figure)
    bars, lines = figure.subplots(1, 2, width_ratios=(1.15, 1))
    _draw_bars(bars, section, unit, limits)
    _draw_curves(lines, curves, curve_label)
    if title:
        figure.suptitle(title, x=0.01, ha="left", fontsize=12, fontweight="bold")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=150, facecolor="white")
    return path


def _draw_bars(axes: Any, section: Section, unit: str, limits: tuple[float, float] | None) -> None:
    width = 0.38
    places = range(len(section.changes))
    for offset, label, color, hatch in ((-width / 2, "before", BEFORE, "///"), (width / 2, "after", AFTER, "")):
        heights = [getattr(change, label) for change in section.changes]
        errors = [getattr(change, f"{label}_error") or 0.0 for change in section.changes]
        drawn = axes.bar(
            [place + offset for place in places],
            heights,
            width,
            label=label,
            color=color,
            edgecolor="black",
            linewidth=0.8,
            hatch=hatch,
            yerr=errors if any(errors) else None,
            error_kw={"elinewidth": 0.9, "capsize": 2},
        )
        texts = [f"{height:.{change.digits}f}" for height, change in zip(heights, section.changes, strict=True)]
        axes.bar_label(drawn, texts, padding=2, fontsize=8)
    axes.set_xticks(list(places), [change.name.replace("_", " ").replace(" ", "\n", 1) for change in section.changes])
    axes.set_ylabel(unit)
    axes.set_title(section.title, loc="left", fontsize=10)
    if limits:
        # room above the scale for the legend
        axes.set_ylim(limits[0], limits[1] + 0.14 * (limits[1] - limits[0]))
    else:
        axes.margins(y=0.18)
    axes.axhline(0, color="black", linewidth=0.8)
    axes.legend(frameon=False, loc="upper left", ncols=2, fontsize=9)
    _plain(axes)


def _draw_curves(axes: Any, curves: Mapping[str, Curve], label: str) -> None:
    for index, ((name, points), (color, marker, dash)) in enumerate(
        zip(curves.items(), _styles(len(curves)), strict=True)
    ):
        steps, values = zip(*points, strict=True)
        axes.plot(
            steps,
            values,
            color=color,
            linestyle=dash,
            marker=marker,
            markersize=4,
            # each line begins its markers elsewhere, so that lines on top of each other still show apart
            markevery=(index % len(steps), min(len(steps), max(len(curves), len(steps) // 8))),
            linewidth=1.5,
            label=name.replace("_", " "),
        )
    axes.axhline(0, color="black", linewidth=0.8)
    axes.set_xlabel("optimizer step")
    axes.set_ylabel(label)
    axes.set_title("margin of chosen over rejected, in training", loc="left", fontsize=10)
    if curves:
        axes.legend(frameon=False, fontsize=9)
    else:
        axes.text(0.5, 0.5, "nothing was logged", transform=axes.transAxes, ha="center", va="center")
    _plain(axes)


def _styles(count: int) -> list[tuple[str, str, Any]]:
    return [STYLES[index % len(STYLES)] for index in range(count)]


def _plain(axes: Any) -> None:
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(labelsize=9)
