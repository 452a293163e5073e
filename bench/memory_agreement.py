"""Plan against simulation at real widths, as a Markdown table.

    python -m bench.memory_agreement [--layers N] [--only 32B] [--engines fsdp2] > table.md

Peaks on one rank, for shapes, engines and settings; no device and no weights are needed.
"""

from __future__ import annotations

import argparse
import dataclasses
import logging
import sys
import time

from amopo.memory.configs import config_of, samples_of
from amopo.memory.plan import make_plan
from amopo.memory.settings import RunSettings, SampleShape
from amopo.memory.shapes import BUILT_IN, with_layers
from amopo.memory.simulate import simulate
from amopo.packing import pack
from amopo.trainer.forward import patch_forward

GIB = 1 << 30
SAMPLE = SampleShape(prompt=256, template=32, chosen=256, rejected=200)
# model, samples in a row, sharing, precision, checkpointing
CASES = [
    ("Qwen2.5-0.5B", 4, "pair", "mixed", False),
    ("Qwen2.5-3B", 2, "tree", "mixed", True),
    ("Qwen2.5-7B", 2, "pair", "mixed", False),
    ("Qwen2.5-14B", 4, "pair", "bf16", True),
    ("Qwen2.5-32B", 2, "pair", "mixed", True),
    ("Qwen2.5-32B", 4, "none", "bf16", False),
    ("Qwen2.5-72B", 1, "tree", "mixed", True),
    ("Qwen3-8B", 2, "pair", "mixed", False),
    ("Qwen3-32B", 4, "tree", "mixed", True),
    ("Llama-3.2-1B", 2, "pair", "mixed", True),
    ("Llama-3.1-70B", 1, "none", "bf16", True),
    ("Mistral-7B", 2, "pair", "mixed", True),
    ("Gemma-2B", 2, "pair", "bf16", False),
    ("Gemma-2-9B", 1, "pair", "mixed", True),
    ("Gemma-3-4B", 2, "tree", "mixed", False),
]
ENGINES = {"single": 1, "ddp": 32, "fsdp2": 32}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--layers", type=int, default=4, help="layers of each model; 0: all")
    parser.add_argument("--only", default="", help="cases whose model's name holds this")
    parser.add_argument("--engines", default=",".join(ENGINES), help="which of them, joined by commas")
    options = parser.parse_args()
    print("| model | layers | row | settings | engine | ranks | simulated GiB | planned GiB | difference |")
    print("|---|---|---|---|---|---|---|---|---|")
    worst = 0.0
    logging.getLogger("amopo.trainer.forward").setLevel(logging.ERROR)  # weights without storage are not tried
    for model, samples, sharing, precision, checkpointing in CASES:
        if options.only not in model:
            continue
        shape = BUILT_IN[model] if options.layers == 0 else with_layers(BUILT_IN[model], options.layers)
        sample = dataclasses.replace(SAMPLE, samples=samples, sharing=sharing)
        batch = pack(samples_of(sample), sharing=sharing)
        for engine in options.engines.split(","):
            gpus = ENGINES[engine]
            start = time.monotonic()
            settings = RunSettings(engine=engine, gpus=gpus, precision=precision, checkpointing=checkpointing)
            plan = make_plan(shape, sample, settings, observed=True)
            found = simulate(
                config_of(shape), batch, patch=patch_forward, engine=engine, gpus=gpus, precision=precision,
                checkpointing=checkpointing,
            )  # fmt: skip
            difference = plan.peak / found.peak - 1
            worst = max(worst, abs(difference))
            kept = "checkpointing" if checkpointing else "all kept"
            print(
                f"| {model} | {shape.layers} | {plan.row.tokens} tokens, {sharing} | {precision}, {kept} | {engine} | "
                f"{gpus} | {found.peak / GIB:.2f} | {plan.peak / GIB:.2f} | {100 * difference:+.1f} % |",
                flush=True,
            )
            print(f"{model} {engine}: {time.monotonic() - start:.0f} s", file=sys.stderr)
    print(f"\nLargest difference: {100 * worst:.1f} %.")


if __name__ == "__main__":
    main()
