"""What a command reads takes memory that does not grow with the file."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
MEASURE = """
import json, sys, tracemalloc
from amopo.cli.console import Console
from amopo.cli.inputs import read_inputs
from amopo.cli.tokens import tokenize
from amopo.trainer.scratch import train_tokenizer

how, *paths = sys.argv[1:]
tokenizer = train_tokenizer(["question answer"], vocab_size=300)

def run(path):
    inputs = read_inputs(path, objectives=["helpfulness"])
    inputs = inputs.in_memory() if how == "list" else inputs
    settings = {"objectives": ["helpfulness"], "scales": inputs.scales, "template": "brief"}
    parts = [part.pairs for part in (inputs.train, inputs.evaluation)]
    made = [tokenize(pairs, tokenizer, Console(quiet=True), cache=how == "stream", **settings)[0] for pairs in parts]
    return sum(map(len, made))

run(paths[0])  # fills what is kept once
peaks = []
for path in paths:
    tracemalloc.start()
    count = run(path)
    peaks.append([count, tracemalloc.get_traced_memory()[1]])
    tracemalloc.stop()
print(json.dumps(peaks))
"""
FEW, MANY = 60, 600


@pytest.fixture
def measure(tmp_path):
    """Most bytes that reading and tokenising held, for a file and one of ten times its rows, with long ones."""
    pytest.importorskip("transformers")
    paths = []
    for count in (FEW, MANY):
        rows = [
            {
                "id": f"an id of some length {n}",
                "prompt": f"question {n}",
                "responses": [{"text": f"answer {n} {s}", "scores": {"helpfulness": s}} for s in (1, 3)],
                "scales": {"helpfulness": [0, 4]},
                "note": f"{n}" * 3000,
            }
            for n in range(count)
        ]
        paths.append(tmp_path / f"{count}.jsonl")
        paths[-1].write_text("".join(json.dumps(row) + "\n" for row in rows))

    def run(how):
        env = {
            **os.environ,
            "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "kernels")]),
            "AMOPO_CACHE": str(tmp_path / how),
        }
        argv = [sys.executable, "-c", MEASURE, how, *map(str, paths)]
        done = subprocess.run(argv, env=env, capture_output=True, text=True, timeout=800)
        assert done.returncode == 0, done.stderr
        (few, small), (many, large) = json.loads(done.stdout)
        assert (few, many) == (FEW, MANY)
        return (large - small) / (paths[1].stat().st_size - paths[0].stat().st_size)

    return run


def test_memory_does_not_grow_with_the_file(measure):
    assert measure("stream") < 0.05


def test_the_measurement_would_see_records_that_are_kept(measure):
    assert measure("list") > 0.5
