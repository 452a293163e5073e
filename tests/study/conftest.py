"""Studies small enough to run in seconds."""

from __future__ import annotations

import json

import pytest

from amopo.cli.console import Console
from amopo.study.settings import SummevalSettings, TaskSettings

TINY = TaskSettings(
    model="scratch:nano",
    train_prompts=43,
    eval_prompts=6,
    plain_draws=1,
    template_draws=1,
    imitation_epochs=1.0,
    steps=2,
    pairs_per_batch=4,
    batches_per_step=2,
    warmup_steps=1,
    learning_rate=1e-3,
    max_new_tokens=4,
)
TINY_RATED = SummevalSettings(
    model="scratch:nano",
    max_prompt_length=48,
    max_response_length=24,
    imitation_epochs=1.0,
    steps=2,
    batches_per_step=2,
    warmup_steps=1,
    learning_rate=1e-3,
)


@pytest.fixture
def console():
    return Console(quiet=True)


@pytest.fixture
def rated(tmp_path):
    """Ten prompts with five rated responses each, in the form of the summaries."""
    names = ("coherence", "consistency", "fluency", "relevance")
    path = tmp_path / "rated.jsonl"
    with open(path, "w", encoding="utf-8") as file:
        for number in range(10):
            responses = [
                {
                    "text": f"Summary {version} of story {number}." + " More words." * version,
                    "scores": {name: 1 + (version * (place + 1) + number) % 5 for place, name in enumerate(names)},
                }
                for version in range(5)
            ]
            row = {"id": f"s{number}", "prompt": f"Story {number}: " + "a man went home . " * 8, "responses": responses}
            file.write(json.dumps(row) + "\n")
    return path
