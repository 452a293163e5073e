"""The pictures of `amopo memory plan`, and the pictures and the page of `amopo memory profile`.

`write_plan(result, path)`: the plan's phases stacked by component, and the same samples by other methods, with the
card's limit as a line; `result` is what `amopo memory plan --json` prints.

`write_picture(result, path)`: bars by phase, the plan stacked by component beside what was measured, with the card's
limit as a line; below, live memory over time, shaded by phase. `write_html(result, path)`: one self-contained page with
the table and the picture. `result` is `amopo.memory.profile.record` with the key "gpu_memory". Needs matplotlib.
"""

from __future__ import annotations

import base64
import html
import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from amopo.memory.plan import COMPONENTS

GIB = 1 << 30
# Dark to light, hatched apart, so that the picture reads in black and white.
_FILLS = {
    "parameters": ("#1f3b4d", ""), "gradients": ("#1b6ca8", "//"), "optimizer": ("#7fb2d9", ""),
    "activations": ("#c0504d", ""), "head": ("#e6a19f", "\\\\"), "attention workspace": ("#8064a2", ""),
    "communication": ("#bfbfbf", "xx"), "context": ("#e6e6e6", ""),
}  # fmt: skip
_SHADES = {"forward": "#e3e3e3", "head": "#c9dff2", "backward": "#f5d6d4", "step": "#d7e8cb"}


def _stack(
    axes: Any, planned: Mapping[str, Mapping[str, int]], phases: list[str], *, shift: float, width: float
) -> None:
    used = [name for name in COMPONENTS if any(planned[phase].get(name) for phase in phases)]
    for number, phase in enumerate(phases):
        bottom = 0.0
        for name in used:
            height = planned[phase].get(name, 0) / GIB
            fill, hatch = _FILLS[name]
            label = name if number == 0 else None
            axes.bar(number + shift, height, width, bottom, color=fill, hatch=hatch, edgecolor="white", label=label)
            bottom += height
        axes.annotate(f"{bottom:.1f}", (number + shift, bottom), (0, 2), textcoords="offset points", ha="center")
    axes.set_xticks(range(len(phases)), phases)
    axes.set_ylabel("GiB")


def write_plan(result: Mapping[str, Any], path: str | Path) -> Path:
    """The figure of a plan as a PNG file; the folder must be there."""
    from matplotlib.figure import Figure

    path = Path(path)
    figure = Figure(figsize=(11, 4.5), layout="constrained")
    phases, methods = figure.subplots(1, 2)
    _stack(phases, result["phases"], list(result["phases"]), shift=0.0, width=0.64)
    settings = result["settings"]
    phases.set_title(f"{result['model']['name']}, {settings['engine']} on {settings['gpus']}: planned, each GPU")
    names = list(result["methods"])
    peaks = [result["methods"][name]["peak"] / GIB for name in names]
    heads = [result["methods"][name]["head"] / GIB for name in names]
    positions = range(len(names))
    bars = methods.bar(positions, peaks, 0.64, color="#d9d9d9", edgecolor="black", label="peak of the step")
    methods.bar_label(bars, [f"{peak:.1f}" for peak in peaks], padding=2)
    methods.bar(positions, heads, 0.3, color="#1b6ca8", hatch="//", edgecolor="white", label="head alone")
    methods.set_xticks(positions, [name.replace(" ", "\n") for name in names])
    methods.set_title("the same samples by other methods")
    for axes in (phases, methods):
        axes.margins(y=0.1)
        _limit(axes, result)
        handles, labels = axes.get_legend_handles_labels()
        # as the bars stand: the last on top
        axes.legend(handles[::-1], labels[::-1], fontsize="small")
    figure.savefig(path, dpi=120)
    return path


def draw(result: Mapping[str, Any]) -> Any:
    """The figure of a profile."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 7), layout="constrained")
    bars, line = figure.subplots(2, 1)
    phases = list(result["measured"])
    _stack(bars, result["planned"], phases, shift=-0.2, width=0.36)
    for number, phase in enumerate(phases):
        label = "measured" if number == 0 else None
        measured, planned = result["measured"][phase] / GIB, sum(result["planned"][phase].values()) / GIB
        bars.bar(number + 0.2, measured, 0.36, color="#ffffff", edgecolor="black", label=label)
        for shift, height in ((-0.2, planned), (0.2, measured)):
            bars.annotate(f"{height:.3g}", (number + shift, height), (0, 2), textcoords="offset points", ha="center")
    bars.margins(y=0.12)
    _limit(bars, result)
    bars.set_title(f"{result['model']}, {result['row']['tokens']} tokens, {result['device']}: planned and measured")
    _legend(bars)

    points = result["timeline"]
    if points:
        seconds, live = [point[0] for point in points], [point[2] / GIB for point in points]
        line.step(seconds, live, where="post", color="black", linewidth=0.8)
        seen: set[str] = set()
        start = 0
        for end in range(1, len(points) + 1):
            if end == len(points) or points[end][1] != points[start][1]:
                right = seconds[min(end, len(points) - 1)]
                phase = points[start][1]
                label = phase if phase in _SHADES and phase not in seen else None
                seen.add(phase)
                line.axvspan(seconds[start], right, color=_SHADES.get(phase, "#ffffff"), linewidth=0, label=label)
                start = end
    highest = max((point[2] for point in points), default=0)
    if (result.get("gpu_memory") or 0) < 2 * highest:  # a line far above would press what is measured to the ground
        _limit(line, result)
    line.set_ylim(bottom=0)
    _legend(line)
    line.set_xlabel("seconds")
    line.set_ylabel("GiB")
    line.set_title("live tensors over time")
    return figure


def _legend(axes: Any) -> None:
    """Beside the axes: over them it hides bars and the limit."""
    if axes.get_legend_handles_labels()[1]:
        axes.legend(fontsize="small", loc="upper left", bbox_to_anchor=(1.0, 1.0), frameon=False)


def _limit(axes: Any, result: Mapping[str, Any]) -> None:
    if result.get("gpu_memory"):
        axes.axhline(result["gpu_memory"] / GIB, color="#c00000", linestyle="--", label="limit of the card")


def write_picture(result: Mapping[str, Any], path: str | Path) -> Path:
    """The figure as a PNG file; the folder must be there."""
    path = Path(path)
    draw(result).savefig(path, dpi=120)
    return path


def write_html(result: Mapping[str, Any], path: str | Path) -> Path:
    """One page without links: the table of phases, the settings, the picture."""
    path, image = Path(path), io.BytesIO()
    draw(result).savefig(image, format="png", dpi=120)
    picture = base64.b64encode(image.getvalue()).decode("ascii")
    rows = []
    for phase, measured in result["measured"].items():
        total = sum(result["planned"][phase].values())
        resident = result["resident"].get(phase)
        cells = [phase, f"{measured / GIB:.3f}", f"{total / GIB:.3f}", f"{100 * (total / measured - 1):+.1f} %"]
        cells.append("" if resident is None else f"{resident / GIB:.3f}")
        rows.append("<tr>" + "".join(f"<td>{html.escape(cell)}</td>" for cell in cells) + "</tr>")
    given = {**result["settings"], **result["sample"], "tokens/s": f"{result['tokens_per_second']:.0f}"}
    settings = ", ".join(f"{name} {value}" for name, value in given.items() if value is not None)
    title = html.escape(f"{result['model']}: memory of a training step on {result['device']}")
    path.write_text(
        f"<!doctype html><meta charset=utf-8><title>{title}</title><style>body{{font-family:sans-serif;margin:2em}}"
        "td,th{padding:.2em .8em;text-align:right}</style>"
        f"<h1>{title}</h1><p>{html.escape(settings)}</p><table><tr><th>phase, GiB<th>measured<th>planned<th>difference"
        f"<th>resident</tr>{''.join(rows)}</table><p>{html.escape(_notes(result))}</p>"
        f"<img alt='planned and measured memory' src='data:image/png;base64,{picture}'>\n",
        encoding="utf-8",
    )
    return path


def _notes(result: Mapping[str, Any]) -> str:
    """What stands beside the table: resident set, allocator, limit, snapshot."""
    said = ["Measured are bytes of tensors" if result["device"] == "cpu" else "Measured is what CUDA's allocator gave"]
    if result.get("resident_before") is not None:
        said.append(f"resident before the model was built: {result['resident_before'] / GIB:.3f} GiB")
    if result.get("reserved") is not None:
        said.append(f"reserved by the allocator: {result['reserved'] / GIB:.3f} GiB")
    if result.get("gpu_memory"):
        said.append(f"limit of the card: {result['gpu_memory'] / GIB:.2f} GiB")
    if result["device"] == "cpu":
        said.append("there is no snapshot for memory_viz, which CUDA's allocator makes")
    return "; ".join(said) + "."
