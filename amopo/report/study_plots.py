"""Pictures of a study, as SVG.

`draw_study(record, objectives, folder)` writes, from what `amopo.study.record` holds, and returns the paths:

    scores.svg     score per objective and their mean, per method: means over seeds, with the intervals over prompts
    control.svg    per method the K x K matrix: what asking for an objective does to each score, less the plain prompt
    margins.svg    held-out margin per objective, per method

Methods differ by marker, and lightness alone carries the matrices, so all read in black and white. The same record
gives the same bytes. Needs matplotlib (extra `plot`), imported here only.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

START = "start"
SHORT = {
    "start": "imitation start",
    "gaussian": "AMoPO gaussian",
    "mean": "AMoPO mean",
    "uniform": "AMoPO uniform",
    "simpo": "SimPO",
    "placebo": "placebo",
}
# colour, marker, filled
STYLES = {
    "start": ("#7f7f7f", "o", False),
    "gaussian": ("#000000", "o", True),
    "mean": ("#1b6ca8", "s", True),
    "uniform": ("#4f9d69", "^", True),
    "simpo": ("#c0504d", "D", True),
    "placebo": ("#7f7f7f", "X", False),
}


def draw_study(record: Mapping[str, Any], objectives: Sequence[str], folder: str | Path) -> list[Path]:
    summary, folder = record["summary"], Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    seeds = f"{len(record['seeds'])} seed{'s' if len(record['seeds']) != 1 else ''}"
    if "generated" in summary:
        by_name, low, high = summary["generated"]["drawn"]["plain"], 0, 4
        title, unit = f"drawn answers, plain prompt ({seeds})", "score"
    else:
        by_name, low, high = summary["best"]["plain"], 1, 5
        title, unit = f"the summary ranked first, plain prompt ({seeds})", "human rating"
    bounds = summary.get("bounds", {})
    return [
        draw_points(folder / "scores.svg", by_name, [*objectives, "mean"], title=title, unit=unit, bounds=bounds),
        draw_matrices(folder / "control.svg", summary["controllability"], objectives, unit=f"{unit} ({low} to {high})"),
        draw_points(
            folder / "margins.svg",
            summary["margins"],
            ["plain", *objectives],
            title=f"held-out pairs: margin of the winner over the loser ({seeds})",
            unit="margin",
            zero=True,
        ),
    ]


def draw_points(
    path: Path,
    by_name: Mapping[str, Mapping[str, Any]],
    names: Sequence[str],
    *,
    title: str,
    unit: str,
    bounds: Mapping[str, Any] | None = None,
    zero: bool = False,
) -> Path:
    """One group of points per name, one point per method; `bounds` are drawn as short lines across a group."""
    figure = _figure((9, 4))
    axes = figure.subplots()
    methods = list(by_name[names[0]])
    for index, method in enumerate(methods):
        entries = [by_name[name][method]["value"] for name in names]
        colour, marker, filled = STYLES[method]
        places = [place + 0.12 * (index - (len(methods) - 1) / 2) for place in range(len(names))]
        means = [entry["mean"] for entry in entries]
        ends = [entry["over_prompts"] for entry in entries]
        axes.errorbar(
            places,
            means,
            yerr=[
                [mean - low for mean, (low, _) in zip(means, ends, strict=True)],
                [high - mean for mean, (_, high) in zip(means, ends, strict=True)],
            ],
            color=colour,
            marker=marker,
            markerfacecolor=colour if filled else "white",
            markersize=6,
            linestyle="none",
            elinewidth=1,
            capsize=2,
            label=SHORT[method],
        )
    for which, dash in (("random", ":"), ("oracle", "--")):
        for place, name in enumerate(names):
            if which in (bounds or {}):
                label = {"random": "taken at random", "oracle": "best rated"}[which] if place == 0 else None
                height = bounds[which][name]["mean"]
                axes.plot([place - 0.42, place + 0.42], [height] * 2, color="black", linestyle=dash, label=label)
    if zero:
        axes.axhline(0, color="black", linewidth=0.8)
    axes.set_xticks(range(len(names)), [_words(name) for name in names])
    axes.set_ylabel(unit)
    axes.set_title(title, loc="left", fontsize=11)
    axes.spines[["top", "right"]].set_visible(False)
    figure.legend(loc="outside lower center", ncols=4, frameon=False, fontsize=9)
    return _save(figure, path)


def draw_matrices(path: Path, found: Mapping[str, Any], objectives: Sequence[str], *, unit: str) -> Path:
    """Asked for (rows) against scored (columns), as the difference from the plain prompt."""
    rows = -(-len(found) // 3)
    figure = _figure((10.5, 3.1 * rows + 0.4))
    panels = figure.subplots(rows, 3, squeeze=False).flatten().tolist()
    differences = {
        method: [[value - plain for value, plain in zip(row, one["plain"], strict=True)] for row in one["matrix"]]
        for method, one in found.items()
    }
    values = [value for matrix in differences.values() for row in matrix for value in row]
    low, high = min(values), max(values)
    names = [_words(name) for name in objectives]
    for index, (axes, (method, matrix)) in enumerate(zip(panels, differences.items(), strict=False)):
        axes.imshow(matrix, cmap="Greys", vmin=low, vmax=high + 0.35 * (high - low or 1))
        for i, row in enumerate(matrix):
            for j, value in enumerate(row):
                dark = (value - low) > 0.75 * (high - low or 1)
                axes.text(
                    j, i, f"{value:+.2f}", ha="center", va="center", fontsize=9, color="white" if dark else "black"
                )
        axes.set_xticks(range(len(names)), names, fontsize=7)
        axes.set_yticks(range(len(names)), names if index % 3 == 0 else [""] * len(names), fontsize=7)
        axes.set_title(SHORT[method], fontsize=10)
        axes.tick_params(length=0)
    for axes in panels[len(found) :]:
        axes.set_axis_off()
    figure.suptitle(f"rows: asked for; columns: {unit}, against the plain prompt", x=0.01, ha="left", fontsize=11)
    return _save(figure, path)


def _words(name: str) -> str:
    return name.replace("_", "\n")


def _figure(size: tuple[float, float]) -> Any:
    try:
        from matplotlib.backends.backend_svg import FigureCanvasSVG
        from matplotlib.figure import Figure
    except ImportError:
        raise ImportError("drawing needs matplotlib: pip install 'amopo[plot]'") from None
    figure = Figure(figsize=size, layout="constrained")
    FigureCanvasSVG(figure)
    return figure


def _save(figure: Any, path: Path) -> Path:
    import matplotlib

    # Without a date and with ids from a fixed salt, the same numbers give the same file.
    with matplotlib.rc_context({"svg.hashsalt": "amopo", "svg.fonttype": "none"}):
        figure.savefig(path, facecolor="white", metadata={"Date": None})
    return path
