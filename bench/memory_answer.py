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
import shlex
import sys
import textwrap
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from amopo.cli import memory_plan
from amopo.cli.options import parse
from amopo.memory.methods import METHODS, plan_method
from amopo.memory.phases import PHASES
from amopo.memory.settings import RunSettings, SampleShape
from amopo.memory.shapes import shape_of
from bench.common.markers import between
from bench.common.results import load
from bench.common.tables import table

GIB = 1 << 30
ROOT = Path(__file__).parents[1]
BEGIN, END = "<!-- answer: begin (python -m bench.memory_answer) -->", "<!-- answer: end -->"
MODEL = "Qwen2.5-32B"
PAPER = "--gpus 32 --gpu-memory 80GB --engine fsdp2 --checkpointing --accumulate 2"  # two micro-batches a step
NODE = "--gpus 8 --gpu-memory 80GB --engine fsdp2 --checkpointing"
ONE = "--gpus 1 --gpu-memory 141GB --lora 16 --checkpointing"


@dataclass(frozen=True)
class Row:
    """One configuration; measured_as: (case, token budget) of `bench/test_memory.py` that runs it."""

    name: str
    cluster: str
    options: str
    measured_as: tuple[str, int] | None = None
    model: str = MODEL

    @property
    def command(self) -> str:
        return f"amopo memory plan --model {self.model} {self.options}"


A100, H100, H200 = "4 x 8 A100 80GB", "8 x H100 80GB", "1 x H200 141GB"
ROWS = (
    Row("paper", A100, PAPER),
    Row("paper-kept", A100, PAPER.replace(" --checkpointing", "")),
    Row("paper-tree", A100, f"{PAPER} --sharing tree"),
    Row("paper-once", A100, PAPER.replace(" --accumulate 2", "")),
    Row("paper-zero3", A100, PAPER.replace("fsdp2", "zero3")),
    Row("paper-ddp", A100, PAPER.replace("fsdp2", "ddp")),
    Row("node", H100, NODE),
    Row("node-twice", H100, f"{NODE} --accumulate 2"),
    Row("node-lora", H100, f"{NODE} --lora 16"),
    Row("node-zero3", H100, NODE.replace("fsdp2", "zero3")),
    Row("node-offload", H100, f"{NODE.replace('fsdp2', 'zero3')} --offload optimizer"),
    Row("one", H200, ONE, ("qwen2.5-32b-lora", 8192)),
    Row("one-tree", H200, f"{ONE} --sharing tree"),
)
EXAMPLE = tuple(
    Row(
        f"example-{engine}", A100, model="Qwen2.5-7B",
        options=f"--gpus 32 --gpu-memory 80GB --engine {engine} --objectives 3 --checkpointing --accumulate 2",
    )
    for engine in ("ddp", "fsdp2", "zero3")
)  # fmt: skip
FIND = tuple(
    Row(f"find-{memory}-{name}", f"A100 {memory}", f"--gpu-memory {memory} --checkpointing {options} --find")
    for memory in ("40GB", "80GB")
    for name, options in (
        ("fsdp2", "--engine fsdp2"),
        ("zero3", "--engine zero3"),
        ("offload", "--engine zero3 --offload optimizer"),
        ("lora", "--engine fsdp2 --lora 16"),
    )
)


def planned(row: Row) -> dict[str, Any]:
    """What `row.command --json` prints."""
    words = shlex.split(row.command)[3:]
    return memory_plan.answer(parse("memory plan", memory_plan.DESCRIPTION, memory_plan.options(), words))[1]


def measured(row: Row, results: Path) -> int | None:
    """Bytes that a GPU held at the row's peak, with what CUDA took outside of the allocator; None without a result."""
    if row.measured_as is None:
        return None
    wanted = {"shape": row.measured_as[0], "budget": row.measured_as[1], "provider": "amopo pair", "small": False}
    for path in sorted(results.glob("*/memory_model.json")):
        for record in load(path)["records"]:
            if "info" in record and wanted.items() <= record["key"].items():
                return record["info"]["peak_bytes"] + record["info"].get("outside_of_allocator_bytes", 0)
    return None


def make_answer(results: Path) -> dict[str, Any]:
    """{"rows": [...], "example": [...], "find": [...]} in bytes; each with its command."""
    rows = []
    for row in ROWS:
        found = planned(row)
        kept = {name: found[name] for name in ("gpu_memory", "peak", "peak_phase", "fits", "largest_tokens", "host")}
        phases = {phase: sum(found["phases"][phase].values()) for phase in PHASES}
        rows.append({
            "name": row.name, "cluster": row.cluster, "command": row.command, **kept, "phases": phases,
            "methods": found["methods"], "row": found["row"], "sample": found["sample"],
            "measured": measured(row, results),
        })  # fmt: skip
    find = [
        {"name": row.name, "cluster": row.cluster, "command": row.command, **planned(row)["smallest_cluster"]}
        for row in FIND
    ]
    example = []
    for row in EXAMPLE:
        found = planned(row)
        kept = {name: found[name] for name in ("gpu_memory", "peak", "fits", "largest_tokens")}
        example.append({"name": row.name, "cluster": row.cluster, "command": row.command, **kept})
    return {"model": MODEL, "rows": rows, "example": example, "find": find}


def _gib(size: int) -> str:
    return f"{size / GIB:.1f}"


def in_words(answer: dict[str, Any]) -> str:
    """The question answered in three sentences."""
    rows = {row["name"]: row for row in answer["rows"]}
    find = {row["name"]: row["gpus"] for row in answer["find"]}

    def verdict(name: str) -> str:
        row = rows[name]
        share = f"{_gib(row['peak'])} of {_gib(row['gpu_memory'])} GiB"
        return (
            f"it fits ({share}, up to {row['largest_tokens']} tokens)" if row["fits"] else f"it does not fit ({share})"
        )

    paper, methods = rows["paper"], rows["paper"]["methods"]
    kept = rows["paper-kept"]["peak"] - paper["peak"]
    once = paper["peak"] - rows["paper-once"]["peak"]
    most = {name: methods[name]["largest_samples"] for name in METHODS}
    numbers = [str(number) for number, name in enumerate(rows, start=1) if name in ("paper", "node", "one")]
    return (
        f"**Will it fit?** By the plan, with K = 4 objectives and rows of {paper['row']['tokens']} tokens: all weights "
        f"trained on the paper's 32 A100 80GB, with the paper's two micro-batches a step, {verdict('paper')}; on 8 "
        f"H100 80GB, with one micro-batch, {verdict('node')}; with LoRA of rank 16 on one H200 141GB, "
        f"{verdict('one')}. "
        "**With which settings?** `--engine fsdp2 --checkpointing`, and `--lora 16 --checkpointing` on one GPU (rows "
        f"{', '.join(numbers)} below); for all weights and one micro-batch the smallest clusters are "
        f"{find['find-80GB-fsdp2']} A100 80GB or {find['find-40GB-fsdp2']} A100 40GB. "
        f"**What does each choice cost?** On the 32 GPUs, `--checkpointing` saves {_gib(kept)} GiB for one more "
        f"forward of every layer; the second micro-batch takes {_gib(once)} GiB, since the gradients of the first "
        f"stand beside it; `--sharing tree` holds {most['amopo tree']} samples in a row where `pair` holds "
        f"{most['amopo pair']} and the released code {most['released']}, for templates that stand behind the prompt, "
        "which is another input."
    )


def render(answer: dict[str, Any]) -> str:
    """What stands between the markers."""
    rows = answer["rows"]
    example = rows[0]
    sample = example["sample"]
    parts = [_wrapped(in_words(answer))]
    parts.append(
        _wrapped(
            f"`--tokens 8192`, the default, is filled with whole samples (prompts of {sample['prompt']} + "
            f"{sample['template']} tokens, responses of {sample['chosen']}); each GPU has one such row. AdamW, mixed "
            "precision, 1 GiB of context. GiB on each GPU at the largest point of each phase; *budget*: the largest "
            "`--tokens` that fits. The plan has no margin: leave some for the allocator's fragmentation."
        )
    )
    lines = []
    for number, row in enumerate(rows, start=1):
        phases = [_gib(row["phases"][phase]) for phase in PHASES]
        lines.append([
            str(number), row["cluster"], f"`{_short(row['command'])}`", str(row["sample"]["samples"]), *phases,
            _gib(row["peak"]), "yes" if row["fits"] else "**no**", str(row["largest_tokens"] or "-"),
            _gib(row["host"]) if row["host"] else "-",
            "pending" if row["measured"] is None else _gib(row["measured"]),
        ])  # fmt: skip
    header = [
        "", "cluster", "options", "samples", *PHASES, "peak", "fits", "budget", "host memory", "measured on a GPU",
    ]  # fmt: skip
    parts.append(table(header, lines))
    parts.append(_commands(rows, 1))
    parts.append("![planned memory of Qwen2.5-32B on 32 GPUs](images/memory-32b.png)")
    parts.append(f"```\n{example['command']} --picture plan.png\n```")

    parts.append("### Side by side")
    parts.append(
        _wrapped(
            "The same samples by other ways of computing their log-probs, under the same settings: peak in GiB, and in "
            "brackets the most samples in one row that fit the GPU (formulas: [the other "
            "methods](#the-other-methods)). Responses of one length need no padding; with real ones the first three "
            "take more."
        )
    )
    lines = [
        [
            str(number), row["cluster"], f"`{_short(row['command'])}`",
            *(f"{_gib(row['methods'][name]['peak'])} ({row['methods'][name]['largest_samples']})" for name in METHODS),
        ]
        for number, row in enumerate(rows, start=1)
        if row["sample"]["sharing"] == "pair"
    ]  # fmt: skip
    parts.append(table(["", "cluster", "options", *METHODS], lines))
    parts.append("![peak against samples in a row, by method](images/memory-32b-methods.png)")

    parts.append("### examples/cluster/paper.yaml")
    parts.append(
        _wrapped(
            "Qwen2.5-7B, three objectives, rows of at most 8192 tokens, two micro-batches a step. It "
            + " and ".join(
                f"{'fits' if row['fits'] else 'does **not** fit'} under {row['name'].removeprefix('example-')} "
                f"({_gib(row['peak'])} of {_gib(row['gpu_memory'])} GiB)"
                for row in answer["example"]
            )
            + "."
        )
    )
    parts.append("\n".join(["```", *(row["command"] for row in answer["example"]), "```"]))

    parts.append("### The smallest cluster")
    lines = []
    for number, row in enumerate(answer["find"], start=len(rows) + 1):
        host = _gib(row["host"]) if row["host"] else "-"
        lines.append([str(number), row["cluster"], f"`{_short(row['command'])}`", str(row["gpus"]), row["engine"],
                      _gib(row["peak"]), host])  # fmt: skip
    parts.append(table(["", "GPU", "options", "GPUs", "engine", "peak GiB", "host memory"], lines))
    parts.append(_commands(answer["find"], len(rows) + 1))
    return "\n\n".join(parts)


def _wrapped(text: str) -> str:
    return textwrap.fill(text, 120, break_long_words=False, break_on_hyphens=False)


def _short(command: str) -> str:
    """The options that say what the cluster's column does not."""
    words = shlex.split(command)[5:]
    kept = [word for at, word in enumerate(words) if not {word, words[at - 1]} & {"--gpus", "--gpu-memory"}]
    return " ".join(kept)


def _commands(rows: list[dict[str, Any]], first: int) -> str:
    lines = [f"{row['command']}  # {number}" for number, row in enumerate(rows, start=first)]
    return "\n".join(["```", *lines, "```"])


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
        axes.set_title(f"{row['cluster']}: {_short(row['command'])}")
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
