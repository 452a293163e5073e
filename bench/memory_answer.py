"""The answer of docs/memory.md for Qwen2.5-32B: `python -m bench.memory_answer`.

Runs the planner for the configurations below, exactly as `amopo memory plan ... --json` would, and writes
bench/results/memory/answer.json, docs/images/memory-32b.png and memory-32b-methods.png, and what stands between the two
markers of docs/memory.md. `--check` changes nothing and fails if the document or the file is not what the planner says.
Peaks that `bench/test_memory.py` measured on a GPU stand beside the plan where there are results; else it says pending.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
from pathlib import Path
from typing import Any

from amopo.memory.known_shapes import shape_of
from amopo.memory.methods import plan_method
from amopo.memory.settings import RunSettings, SampleShape
from bench.common.markers import between
from bench.memory_answer_page import GIB, render, short
from bench.memory_answer_rows import MODEL, ROWS, make_answer, planned

ROOT = Path(__file__).parents[1]
BEGIN, END = "<!-- answer: begin (python -m bench.memory_answer) -->", "<!-- answer: end -->"

# dark to light, each with its own dashes and mark, so that the picture reads in grey
_LINES = {
    "released": ("#8c1515", "-", "s"), "plain bf16": ("#c0504d", "--", "^"), "liger-like": ("#7f7f7f", ":", "D"),
    "amopo none": ("#7fb2d9", "-.", "v"), "amopo pair": ("#1b6ca8", "-", "o"), "amopo tree": ("#1f3b4d", "--", "x"),
}  # fmt: skip


def draw_methods(rows: dict[str, dict[str, Any]], path: Path) -> None:
    """Peak against samples in a row, one panel per cluster, one line per method up to the GPU's limit."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 4.5), layout="constrained")
    shape, panels = shape_of(MODEL), figure.subplots(1, 2)
    for axes, name in zip(panels, ("paper", "one"), strict=True):
        row = rows[name]
        limit = row["gpu_memory"]
        settings, context = RunSettings(**row["settings"]), row["phases_of_parts"]["load"]["context"]
        for method, (colour, dashes, mark) in _LINES.items():
            counts, peaks = [], []
            for samples in range(1, row["methods"][method]["largest_samples"] + 1):
                sample = dataclasses.replace(SampleShape(**row["sample"]), samples=samples)
                counts.append(samples)
                peaks.append(plan_method(method, shape, sample, settings, context=context).peak / GIB)
            hollow = {"fillstyle": "none", "markersize": 8} if method == "liger-like" else {"markersize": 4}  # two meet
            axes.plot(counts, peaks, dashes, color=colour, marker=mark, linewidth=1.4, label=method, **hollow)
        axes.axhline(limit / GIB, color="#c00000", linestyle=(0, (1, 1)), linewidth=1.2, label="limit of the GPU")
        axes.set_title(f"{row['cluster']}: {short(row['command'])}")
        axes.set_xlabel("samples in a row (K = 4)")
        axes.set_ylabel("planned GiB on each GPU")
        axes.set_xlim(left=0)
    panels[0].legend(fontsize="small", loc="lower right")
    figure.savefig(path, dpi=120)


def draw(images: Path) -> None:
    """Both pictures into a folder."""
    from amopo.report.memory import write_plan

    by_name = {row.name: row for row in ROWS}
    found = {name: planned(by_name[name]) for name in ("paper", "one")}
    write_plan(found["paper"], images / "memory-32b.png")
    rows = {
        name: {**result, "phases_of_parts": result["phases"], "cluster": by_name[name].cluster,
               "command": by_name[name].command}
        for name, result in found.items()
    }  # fmt: skip
    draw_methods(rows, images / "memory-32b-methods.png")


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.memory_answer", description=__doc__.splitlines()[0])
    parser.add_argument("--results", type=Path, default=ROOT / "bench/results")
    parser.add_argument("--docs", type=Path, default=ROOT / "docs")
    parser.add_argument("--check", action="store_true", help="change nothing; fail if something is not up to date")
    options = parser.parse_args(arguments)
    file, document = options.results / "memory/answer.json", options.docs / "memory.md"
    answer = make_answer(options.results)
    text = json.dumps(answer, indent=1) + "\n"
    before = document.read_text(encoding="utf-8")
    after = between(before, BEGIN, END, render(answer), name=document.name)
    if options.check:
        is_new = after == before and file.is_file() and file.read_text(encoding="utf-8") == text
        if not is_new:
            print(f"{document} or {file} is not what the plan says; run python -m bench.memory_answer", file=sys.stderr)
        return int(not is_new)
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(text, encoding="utf-8")
    document.write_text(after, encoding="utf-8")
    (options.docs / "images").mkdir(exist_ok=True)
    draw(options.docs / "images")
    print(f"wrote {file}, {document} and its pictures")
    return 0


if __name__ == "__main__":
    sys.exit(main())
