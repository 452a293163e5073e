"""Real preference files go from the command to a trained model."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

pytest.importorskip("transformers")

DATA = Path(os.environ.get("AMOPO_DATA") or Path(__file__).resolve().parents[2].parent / "shared" / "data")

RUNS = {
    # Short rows keep this fast: the point is that real text goes all the way.
    "helpsteer2_sample100": [
        "--objectives=helpfulness,correctness,coherence",
        "--scales=helpfulness=0:4,correctness=0:4,coherence=0:4",
        "--max-prompt-length=128",
        "--max-response-length=96",
        "--tokens-per-batch=1536",
        "--num-train-epochs=2",
    ],
    "emnlp17_nlg": [
        "--objectives=informativeness,naturalness,quality",
        "--scales=informativeness=1:6,naturalness=1:6,quality=1:6",
        "--tokens-per-batch=1536",
        "--num-train-epochs=1",
    ],
}


@pytest.mark.slow
@pytest.mark.parametrize("name", RUNS)
def test_a_real_file_trains_to_the_end(amopo, tmp_path, name):
    path = DATA / name / "grouped.jsonl"
    if not path.is_file():
        pytest.skip(f"{name} is not in the data folder; set AMOPO_DATA to the folder that holds it")
    flags = ["--model=scratch:nano", "--template=brief", "--imitation-epochs=1", "--learning-rate=1e-3", "--beta=2"]
    outcome = amopo("train", *flags, "--use-cpu", "--data", path, "--output-dir", tmp_path / "out", *RUNS[name])
    assert outcome.status == 0, outcome.err
    metrics = json.loads((tmp_path / "out" / "metrics.json").read_text())
    losses = [row["loss"] for row in metrics["log_history"] if "loss" in row]
    assert len(losses) >= 10 and all(0 < loss < 10 for loss in losses)
    assert sum(losses[-5:]) < sum(losses[:5]), "the training loss must fall"
    objectives = RUNS[name][0].split("=")[1].split(",")
    assert all(f"rewards/margins/{objective}" in metrics["preferences"]["after"] for objective in objectives)
    assert (tmp_path / "out" / "model.safetensors").exists()
