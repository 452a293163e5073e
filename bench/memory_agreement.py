"""Plan against simulation at real widths: results for bench/results, and the tables of docs/memory.md.

    python -m bench.memory_agreement                     every case with 4 layers, then the document
    python -m bench.memory_agreement --full 32B          cases of that name with all layers (minutes each)
    python -m bench.memory_agreement --only 7B --engines fsdp2
    python -m bench.memory_agreement --replan            nothing is simulated; plans are made again
    python -m bench.memory_agreement --check             fails if plans or the document are not those of today

Peaks on one rank, in bytes, for shapes, engines and settings; no device and no weights are needed.
"""

from __future__ import annotations

import argparse
import dataclasses
import logging
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from amopo.memory.known_shapes import BUILT_IN
from amopo.memory.plan import Plan, make_plan
from amopo.memory.settings import RunSettings, SampleShape
from amopo.memory.shapes import ModelShape, with_layers
from bench.common import machine
from bench.common.markers import between, not_of_today
from bench.common.results import Recorder, load

ROOT = Path(__file__).resolve().parents[1]
QUESTION = "memory_agreement"
RESULT = ROOT / "bench" / "results" / f"{QUESTION}.json"
DOCUMENT = ROOT / "docs" / "memory.md"
BEGIN, END = "<!-- simulation: begin (python -m bench.memory_agreement) -->", "<!-- simulation: end -->"
GIB = 1 << 30
LAYERS = 4
ENGINES = {"single": 1, "ddp": 32, "fsdp2": 32}
SAMPLE = SampleShape(prompt=256, template=32, chosen=256, rejected=200)
WITHOUT_SOFTCAP = " without attention softcap"


@dataclass(frozen=True)
class Case:
    """A model, the samples in its row, and its settings. layers: 0 for all."""

    model: str
    samples: int
    sharing: str
    precision: str
    checkpointing: bool
    lora: int | None = None
    layers: int = LAYERS
    accumulation: int = 1

    @property
    def shape(self) -> ModelShape:
        shape = BUILT_IN[self.model.removesuffix(WITHOUT_SOFTCAP)]
        if self.model.endswith(WITHOUT_SOFTCAP):
            shape = dataclasses.replace(shape, attention_softcap=None)
        return with_layers(shape, self.layers) if self.layers else shape

    @property
    def sample(self) -> SampleShape:
        return dataclasses.replace(SAMPLE, samples=self.samples, sharing=self.sharing)

    def settings(self, engine: str) -> RunSettings:
        return RunSettings(
            engine=engine, gpus=ENGINES[engine], precision=self.precision, checkpointing=self.checkpointing,
            lora=self.lora, accumulation=self.accumulation,
        )  # fmt: skip

    def plan(self, engine: str) -> Plan:
        """As a tracker sees the step, which the simulation is read by."""
        return make_plan(self.shape, self.sample, self.settings(engine), observed=True)

    def simulate(self, engine: str) -> dict[str, int]:
        from amopo.memory.configs import config_of, samples_of
        from amopo.memory.simulate import simulate
        from amopo.packing import pack
        from amopo.trainer.forward import patch_forward

        settings = self.settings(engine)
        found = simulate(
            config_of(self.shape), pack(samples_of(self.sample), sharing=self.sharing), patch=patch_forward,
            engine=engine, gpus=settings.gpus, precision=self.precision, checkpointing=self.checkpointing,
            lora=self.lora, accumulation=self.accumulation,
        )  # fmt: skip
        return found.peaks


CASES = (
    Case("Qwen2.5-0.5B", 4, "pair", "mixed", False),
    Case("Qwen2.5-3B", 2, "tree", "mixed", True),
    Case("Qwen2.5-7B", 2, "pair", "mixed", False),
    Case("Qwen2.5-14B", 4, "pair", "bf16", True),
    Case("Qwen2.5-32B", 2, "pair", "mixed", True),
    Case("Qwen2.5-32B", 4, "none", "bf16", False),
    Case("Qwen2.5-72B", 1, "tree", "mixed", True),
    Case("Qwen3-8B", 2, "pair", "mixed", False),
    Case("Qwen3-32B", 4, "tree", "mixed", True),
    Case("Llama-3.2-1B", 2, "pair", "mixed", True),
    Case("Llama-3.1-70B", 1, "none", "bf16", True),
    Case("Mistral-7B", 2, "pair", "mixed", True),
    Case("Gemma-2B", 2, "pair", "bf16", False),
    Case("Gemma-2-9B" + WITHOUT_SOFTCAP, 1, "pair", "mixed", True),
    Case("Gemma-3-4B", 2, "tree", "mixed", False),
    Case("Qwen2.5-7B", 2, "pair", "mixed", False, lora=16),
    Case("Qwen2.5-32B", 2, "pair", "mixed", True, lora=16),
    Case("Qwen3-8B", 2, "tree", "bf16", False, lora=64),
    Case("Llama-3.2-1B", 2, "pair", "mixed", True, lora=16),
    Case("Qwen2.5-32B", 2, "pair", "mixed", True, accumulation=2),
    Case("Llama-3.2-1B", 2, "pair", "mixed", True, accumulation=2),
    Case("Qwen2.5-7B", 2, "pair", "bf16", False, accumulation=2),
)
FULL = tuple(dataclasses.replace(case, layers=0) for case in CASES)


def run(cases: list[tuple[Case, str]], result: Path) -> None:
    """Simulate and plan, and write each row at once."""
    logging.getLogger("amopo.trainer.forward").setLevel(logging.ERROR)  # weights without storage are not tried
    described = {
        "machine": machine.describe(torch.device("cpu")), "versions": machine.versions(),
        "command": "python -m bench.memory_agreement", "date": machine.today(),
    }  # fmt: skip
    recorder = Recorder(result.parent.parent, result.parent.name, described)
    for case, engine in cases:
        start = time.monotonic()
        simulated = case.simulate(engine)
        recorder.put(QUESTION, key_of(case, engine), stats=_stats(case, engine, simulated))
        off = max(case.plan(engine).phases, key=case.plan(engine).total)
        difference = case.plan(engine).peak / max(simulated.values()) - 1
        print(
            f"{case.model} {engine} lora={case.lora}: {100 * difference:+.2f} % in {off}, "
            f"{time.monotonic() - start:.0f} s", flush=True,
        )  # fmt: skip


def key_of(case: Case, engine: str) -> dict[str, Any]:
    return {**dataclasses.asdict(case), "engine": engine, "ranks": ENGINES[engine]}


def case_of(key: dict[str, Any]) -> Case:
    return Case(**{field.name: key[field.name] for field in dataclasses.fields(Case)})


def _stats(case: Case, engine: str, simulated: dict[str, int]) -> dict[str, dict[str, int]]:
    plan = case.plan(engine)
    return {"simulated": simulated, "planned": {phase: plan.total(phase) for phase in simulated}}


def replanned(data: dict) -> dict:
    """The result with the plans of today."""
    records = [
        {**old, "stats": _stats(case_of(old["key"]), old["key"]["engine"], old["stats"]["simulated"])}
        for old in data["records"]
    ]
    return {**data, "records": records}


def in_order(data: dict) -> Iterator[dict]:
    """Records in the order of the cases and engines; those of all layers last."""
    order = [key_of(case, engine) for case in (*CASES, *FULL) for engine in ENGINES]
    return iter(sorted(data["records"], key=lambda record: order.index(record["key"])))


def difference_of(record: dict) -> float:
    """Of the peaks, as a share of the simulated one."""
    stats = record["stats"]
    return max(stats["planned"].values()) / max(stats["simulated"].values()) - 1


def tables(data: dict) -> str:
    """Markdown of the result."""
    records = list(in_order(data))
    few = [record for record in records if record["key"]["layers"]]
    whole = [record for record in records if not record["key"]["layers"]]
    parts = [f"`python -m bench.memory_agreement`: {LAYERS} layers of each width.", _table(few)]
    if whole:
        parts += ["`python -m bench.memory_agreement --full 32B`: all layers.", _table(whole)]
    versions = data["runs"][0]["versions"]
    worst = max(map(abs, map(difference_of, records)))
    of_phases = max(abs(p / s - 1) for r in records for p, s in zip(*_phases(r)))
    parts.append(
        f"Largest difference of a peak: {100 * worst:.1f} %; of any phase's: {100 * of_phases:.1f} %. torch "
        f"{versions['torch']}, transformers {versions['transformers']}."
    )
    return "\n\n".join(parts)


def _phases(record: dict) -> tuple[list[int], list[int]]:
    stats = record["stats"]
    return [stats["planned"][phase] for phase in stats["simulated"]], list(stats["simulated"].values())


def _table(records: list[dict]) -> str:
    lines = [
        "| model | layers | row | settings | engine | ranks | simulated GiB | planned GiB | difference |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for record in records:
        key, stats, case = record["key"], record["stats"], case_of(record["key"])
        words = [key["precision"], "checkpointing" if key["checkpointing"] else "all kept"]
        words += [] if key["lora"] is None else [f"LoRA {key['lora']}"]
        words += [] if key["accumulation"] == 1 else [f"{key['accumulation']} micro-batches"]
        tokens = case.plan(key["engine"]).row.tokens
        lines.append(
            f"| {key['model']} | {case.shape.layers} | {tokens} tokens, {key['sharing']} | {', '.join(words)} | "
            f"{key['engine']} | {key['ranks']} | {max(stats['simulated'].values()) / GIB:.2f} | "
            f"{max(stats['planned'].values()) / GIB:.2f} | {100 * difference_of(record):+.1f} % |"
        )
    return "\n".join(lines)


def document_with(document: str, text: str) -> str:
    """The document with `text` between its markers."""
    return between(document, BEGIN, END, text, name=DOCUMENT.name)


def check(result: Path, document: Path) -> list[str]:
    """What is not as today's planner and the result say."""
    data = load(result)
    text = document.read_text(encoding="utf-8")
    return not_of_today(
        result.name,
        document.name,
        is_planned=replanned(data) == data,
        is_written=document_with(text, tables(data)) == text,
    )


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.memory_agreement", description=__doc__.splitlines()[0])
    parser.add_argument("--only", default="", help="cases whose model's name holds this")
    parser.add_argument("--full", metavar="NAME", help="all layers, of the cases whose model's name holds this")
    parser.add_argument("--engines", default=",".join(ENGINES), help="which of them, joined by commas")
    parser.add_argument("--replan", action="store_true", help="simulate nothing; make the plans and the tables again")
    parser.add_argument("--check", action="store_true", help="change nothing; fail if something is not of today")
    options = parser.parse_args(arguments)
    if options.check:
        wrong = check(RESULT, DOCUMENT)
        print("\n".join(wrong) or "as today", file=sys.stderr if wrong else sys.stdout)
        return int(bool(wrong))
    engines = options.engines.split(",")
    unknown = [engine for engine in engines if engine not in ENGINES]
    if unknown:
        parser.error(f"--engines: {', '.join(unknown)} cannot be simulated; {', '.join(ENGINES)} can")
    if not options.replan:
        among, name = (CASES, options.only) if options.full is None else (FULL, options.full)
        chosen = [(case, engine) for case in among if name in case.model for engine in engines]
        if not chosen:
            parser.error(f"no case has a model whose name holds {name!r}")
        run(chosen, RESULT)
    _write(replanned(load(RESULT)))
    return 0


def _write(data: dict) -> None:
    import json

    RESULT.write_text(json.dumps(data, indent=1, sort_keys=True) + "\n", encoding="utf-8")
    text = DOCUMENT.read_text(encoding="utf-8")
    DOCUMENT.write_text(document_with(text, tables(data)), encoding="utf-8")


if __name__ == "__main__":
    sys.exit(main())
