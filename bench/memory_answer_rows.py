"""The configurations that the answer of docs/memory.md plans, and what the planner says of each.

`make_answer(results)` runs the planner for all of them, exactly as `amopo memory plan ... --json` would. Peaks that
`bench/test_memory.py` measured on a GPU stand beside the plan where `results` has them.
"""

from __future__ import annotations

import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from amopo.cli import memory_plan
from amopo.cli.options import parse
from amopo.memory.phases import PHASES
from bench.common.results import load

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
