"""Plan against real steps on a CPU: results for bench/results/memory/cpu.json, and the tables of docs/memory.md.

    python -m bench.memory_cpu                measure the model of 94 million parameters and the sharing rows (a minute)
    python -m bench.memory_cpu --ranks torch  measure DDP and FSDP2 on two ranks; --ranks zero3 needs deepspeed
    python -m bench.memory_cpu --replan       nothing is measured; the plans and the tables are made again
    python -m bench.memory_cpu --check        fails if plans or the document are not those of today

Every profile is `amopo memory profile --json` in a process of its own, so that the resident set is its own too.
"""

from __future__ import annotations

import argparse
import dataclasses
import importlib.util
import json
import os
import subprocess
import sys
import tempfile
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any

import torch

from amopo.memory.known_shapes import BUILT_IN
from amopo.memory.plan import make_plan
from amopo.memory.settings import RunSettings, SampleShape
from amopo.memory.shapes import ModelShape
from amopo.memory.workload import row_of
from bench.common import machine
from bench.common.markers import between, not_of_today
from bench.common.results import Recorder, load
from bench.common.tables import table

ROOT = Path(__file__).resolve().parents[1]
QUESTION = "cpu"
RESULT = ROOT / "bench/results/memory/cpu.json"
DOCUMENT = ROOT / "docs/memory.md"
WORKERS = ROOT / "tests/cluster"
PHASES = ("forward", "head", "backward", "step")
MIB, GIB = 1 << 20, 1 << 30
SAMPLE = SampleShape(objectives=2, prompt=40, template=8, chosen=48, rejected=32)
MODELS = {
    "94M": dataclasses.replace(
        BUILT_IN["Qwen2.5-7B"], layers=12, hidden=640, intermediate=1792, heads=10, kv_heads=2, head_dim=64, vocab=32000
    ),
    "small": dataclasses.replace(
        BUILT_IN["Qwen2.5-7B"], layers=4, hidden=320, intermediate=1024, heads=5, kv_heads=1, head_dim=64, vocab=4096
    ),
}
RANKS = {
    "zero3": (
        ("13.2M parameters, 88 tokens", "parameters:none"),
        ("the same", "parameters:optimizer"),
        ("the same", "parameters:all"),
        ("the same, limits of 0.3M gathered numbers", "parameters-short:none"),
        ("the same, checkpointing, limits of 3M", "parameters-checkpointed:none"),
        ("the same, 2 micro-batches", "parameters-twice:optimizer"),
        ("tied, 10.0M", "parameters-tied:none"),
        ("13.2M parameters, 88 tokens, LoRA 16", "adapters:none"),
        ("the same", "adapters:all"),
        ("the same, limits of 0.3M gathered numbers", "adapters-short:none"),
        ("3.7M parameters, 2048 tokens", "activations:none"),
        ("the same, checkpointing", "activations-checkpointed:none"),
        ("the same, LoRA 64, 2 micro-batches", "adapters-twice:none"),
    ),
    "torch": (
        ("ddp, 13.2M parameters, 88 tokens, 2 micro-batches", "ddp-twice:none"),
        ("ddp, 3.7M, 2048 tokens, checkpointing, LoRA 64, 2 micro-batches", "ddp-adapters-twice:none"),
        ("fsdp2, 13.2M, 88 tokens", "fsdp2:none"),
        ("the same", "fsdp2:all"),
        ("the same, 2 micro-batches", "fsdp2-twice:none"),
        ("the same, 2 micro-batches", "fsdp2-twice:all"),
        ("fsdp2, tied, 10.0M, 2 micro-batches", "fsdp2-tied-twice:none"),
        ("the same", "fsdp2-tied-twice:all"),
        ("fsdp2, 3.7M, 2048 tokens, checkpointing, LoRA 64, 2 micro-batches", "fsdp2-adapters-twice:none"),
        ("the same", "fsdp2-adapters-twice:all"),
    ),
}


@dataclasses.dataclass(frozen=True)
class Case:
    """One profile on one CPU process."""

    model: str
    samples: int
    sharing: str
    precision: str
    checkpointing: bool

    @property
    def shape(self) -> ModelShape:
        return MODELS[self.model]

    @property
    def sample(self) -> SampleShape:
        return dataclasses.replace(SAMPLE, samples=self.samples, sharing=self.sharing)

    def plan(self) -> dict[str, int]:
        settings = RunSettings(precision=self.precision, checkpointing=self.checkpointing, device="cpu")
        plan = make_plan(self.shape, self.sample, settings, observed=True)
        return {phase: plan.total(phase) for phase in PHASES}

    def measure(self) -> dict[str, dict[str, int]]:
        shape, sample = self.shape, self.sample
        config = {
            "model_type": "qwen2", "hidden_size": shape.hidden, "intermediate_size": shape.intermediate,
            "num_hidden_layers": shape.layers, "vocab_size": shape.vocab, "num_attention_heads": shape.heads,
            "num_key_value_heads": shape.kv_heads, "tie_word_embeddings": False,
        }  # fmt: skip
        with tempfile.TemporaryDirectory() as folder:
            (Path(folder) / "config.json").write_text(json.dumps(config))
            lengths = ("objectives", "prompt", "template", "chosen", "rejected", "sharing")
            command = [sys.executable, "-P", "-m", "amopo", "memory", "profile", "--model", folder]
            for name in lengths:
                command += [f"--{name}", str(getattr(sample, name))]
            command += ["--tokens", str(row_of(sample).tokens), "--precision", self.precision, "--steps", "2"]
            command += ["--device", "cpu", "--out", folder, "--json"]
            command += ["--checkpointing"] if self.checkpointing else []
            done = subprocess.run(command, check=True, capture_output=True, text=True)
        found = json.loads(done.stdout)
        assert found["parameters"] == shape.parameters and found["sample"]["samples"] == self.samples
        return {"measured": found["measured"], "resident": found["resident"]}


HUNDRED = (Case("94M", 4, "pair", "fp32", True), Case("94M", 4, "pair", "mixed", False))
SHARING = tuple(
    Case("small", 4, sharing, "fp32", checkpointing)
    for sharing in ("none", "pair", "tree")
    for checkpointing in (False, True)
)


@cache
def _rank_cases() -> ModuleType:
    """The models and rows that the tests of real ranks run."""
    spec = importlib.util.spec_from_file_location("rank_memory_cases", WORKERS / "rank_memory_cases.py")
    module = sys.modules[spec.name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def plan_ranks(run: str) -> dict[str, int]:
    plan = _rank_cases().plan_of(run)
    return {**{phase: plan.total(phase) for phase in PHASES}, "host": plan.host}


def measure_ranks(name: str) -> dict[str, dict[str, int]]:
    """Of the rows of a table: bytes on the device and on the host, the larger of the two ranks', by run."""
    runs = [run for _, run in RANKS[name]]
    paths = [str(WORKERS), str(ROOT), str(ROOT / "kernels")]
    here = {"PYTHONPATH": os.pathsep.join(paths), "OMP_NUM_THREADS": "1", "DS_ACCELERATOR": "cpu"}
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-P", "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
        command += [str(WORKERS / "rank_memory.py"), folder, *runs]
        subprocess.run(command, check=True, env={**os.environ, **here}, timeout=600, stdout=subprocess.DEVNULL)
        found = {}
        for run in runs:
            files = [Path(folder) / f"{run.replace(':', '-')}-{rank}.json" for rank in range(2)]
            ranks = [json.loads(file.read_text()) for file in files]
            most = {phase: max(rank["peaks"][phase] for rank in ranks) for phase in PHASES}
            found[run] = {**most, "host": max(rank["states"]["host"] for rank in ranks)}
    return found


def run(*, ranks: str | None) -> None:
    described = {
        "machine": machine.describe(torch.device("cpu")), "versions": machine.versions(),
        "command": "python -m bench.memory_cpu" + (f" --ranks {ranks}" if ranks else ""), "date": machine.today(),
    }  # fmt: skip
    recorder = Recorder(RESULT.parent.parent, RESULT.parent.name, described)
    if ranks:
        for name, measured in measure_ranks(ranks).items():
            recorder.put(QUESTION, {"run": name}, stats={"measured": measured})
        return
    for case in (*HUNDRED, *SHARING):
        recorder.put(QUESTION, dataclasses.asdict(case), stats=case.measure())


def replanned(data: dict) -> dict:
    """The result with the plans of today."""

    def planned(key: dict) -> dict[str, int]:
        return plan_ranks(key["run"]) if "run" in key else Case(**key).plan()

    records = [{**old, "stats": {**old["stats"], "planned": planned(old["key"])}} for old in data["records"]]
    return {**data, "records": records}


def tables(data: dict) -> dict[str, str]:
    """Markdown by name; of real ranks only where they were measured."""
    found = {json.dumps(record["key"], sort_keys=True): record["stats"] for record in data["records"]}

    def stats_of(key: dict[str, Any]) -> dict[str, dict[str, int]]:
        return found[json.dumps(key, sort_keys=True)]

    def off(planned: float, measured: float) -> str:
        return f"{100 * (planned / measured - 1):+.1f} %"

    both = [stats_of(dataclasses.asdict(case)) for case in HUNDRED]
    lines = []
    for phase in PHASES:
        cells = [phase]
        for stats in both:
            measured, planned = stats["measured"][phase], stats["planned"][phase]
            resident = stats["resident"].get(phase)
            cells += [f"{measured / GIB:.3f}", f"{planned / GIB:.3f}", off(planned, measured)]
            cells.append("-" if resident is None else f"{resident / GIB:.3f}")
        lines.append(cells)
    header = ["phase"]
    for precision in ("fp32", "mixed"):
        header += [f"{precision} measured", "planned", "difference", "resident"]
    made = {"94M": table(header, lines)}
    lines = []
    for case in SHARING:
        stats = stats_of(dataclasses.asdict(case))
        measured, planned = stats["measured"], stats["planned"]
        worst = max(PHASES, key=lambda phase: abs(planned[phase] / measured[phase] - 1))
        highest, expected = max(measured.values()), max(planned.values())
        lines.append([
            case.sharing, "yes" if case.checkpointing else "no", f"{highest / MIB:.1f}", f"{expected / MIB:.1f}",
            off(expected, highest), f"{worst}, {off(planned[worst], measured[worst])}",
        ])  # fmt: skip
    made["sharing"] = table(
        ["sharing", "checkpointing", "measured MiB", "planned MiB", "difference", "furthest"], lines
    )
    if not any("run" in record["key"] for record in data["records"]):
        return made
    for name, rows in RANKS.items():
        lines = []
        for words, run in rows:
            stats, offload = stats_of({"run": run}), run.split(":")[1]
            pairs = [
                f"{stats['measured'][phase] / MIB:.1f} / {stats['planned'][phase] / MIB:.1f}"
                for phase in ("host", *PHASES)
            ]
            lines.append([words, offload, "-" if offload == "none" else pairs[0], *pairs[1:]])
        made[name] = table(["model", "offload", "host memory", *PHASES], lines)
    return made


def marks(name: str) -> tuple[str, str]:
    return f"<!-- cpu {name}: begin (python -m bench.memory_cpu) -->", f"<!-- cpu {name}: end -->"


def document_with(document: str, made: dict[str, str]) -> str:
    """The document with each table between its markers."""
    for name, text in made.items():
        document = between(document, *marks(name), text, name=DOCUMENT.name)
    return document


def check(result: Path, document: Path) -> list[str]:
    """What is not as today's planner and the result say."""
    data, text = load(result), document.read_text(encoding="utf-8")
    return not_of_today(
        result.name,
        document.name,
        is_planned=replanned(data) == data,
        is_written=document_with(text, tables(data)) == text,
    )


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.memory_cpu", description=__doc__.splitlines()[0])
    parser.add_argument(
        "--ranks", choices=RANKS, help="measure on two ranks: torch's engines, or zero3, which needs deepspeed"
    )
    parser.add_argument("--replan", action="store_true", help="measure nothing; make the plans and the tables again")
    parser.add_argument("--check", action="store_true", help="change nothing; fail if something is not of today")
    options = parser.parse_args(arguments)
    if options.check:
        wrong = check(RESULT, DOCUMENT)
        print("\n".join(wrong) or "as today", file=sys.stderr if wrong else sys.stdout)
        return int(bool(wrong))
    if not options.replan:
        run(ranks=options.ranks)
    data = replanned(load(RESULT))
    RESULT.write_text(json.dumps(data, indent=1, sort_keys=True) + "\n", encoding="utf-8")
    text = DOCUMENT.read_text(encoding="utf-8")
    DOCUMENT.write_text(document_with(text, tables(data)), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
