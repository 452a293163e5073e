"""Real preference data and a model for whole training steps.

`load_samples(name)` reads a data set of `AMOPO_DATA` (see docs/benchmarks.md), tokenised with a byte-level BPE of 32768
entries trained on all texts there; `drawn` takes some of them at random, always the same, since the first lines
of a file need not be like the rest. `make_model()` is a Qwen2 of 30M parameters from nothing. `AMOPO_DATA` defaults to
../shared/data beside the checkout.
"""

from __future__ import annotations

import functools
import os
import random
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from amopo.packing import TokenizedSample

VOCAB = 32768
FOLDER = Path(os.environ.get("AMOPO_DATA") or Path(__file__).resolve().parents[3] / "shared" / "data")


@dataclass(frozen=True)
class DataSet:
    """Objectives, template and cuts of one data set."""

    objectives: tuple[str, ...]
    template: str
    max_prompt: int
    max_response: int
    drawn: int  # samples of a measured step: the padded rows of four must fit in 20 GB
    scales: dict[str, tuple[float, float]]


DATA_SETS = {
    "helpsteer2_sample100": DataSet(
        ("helpfulness", "correctness", "coherence", "complexity"), "rubric", 512, 512, 8,
        {name: (0, 4) for name in ("helpfulness", "correctness", "coherence", "complexity")},
    ),
    "summeval": DataSet(
        ("coherence", "consistency", "fluency", "relevance"), "rubric_suffix", 1024, 256, 4,
        {name: (1, 5) for name in ("coherence", "consistency", "fluency", "relevance")},
    ),
}  # fmt: skip


def missing(name: str) -> str | None:
    """Why the data set cannot be read, or None."""
    path = FOLDER / name / "grouped.jsonl"
    return None if path.is_file() else f"{name} is not in {FOLDER.name}/; set AMOPO_DATA to the folder that holds it"


@functools.cache
def tokenizer() -> Any:
    """Trained on every text of the folder."""
    import json

    from amopo.trainer.scratch import train_tokenizer

    texts = []
    for path in sorted(FOLDER.glob("*/*.jsonl")):
        for line in path.read_text(encoding="utf-8").splitlines():
            row = json.loads(line)
            texts += [row.get(key) for key in ("prompt", "chosen", "rejected") if isinstance(row.get(key), str)]
            texts += [response["text"] for response in row.get("responses", ())]
    return train_tokenizer(texts, vocab_size=VOCAB)


@functools.cache
def load_samples(name: str, count: int | None = None, *, short: bool = False) -> tuple[TokenizedSample, ...]:
    """All samples or the first `count`; `short`: cut to a tenth, to see that everything runs."""
    from amopo.data import build_pairs, read_records, scales_of, tokenize_pairs
    from amopo.data.scales import as_scales

    data = DATA_SETS[name]
    given = as_scales({key: list(value) for key, value in data.scales.items()})
    records = read_records(FOLDER / name / "grouped.jsonl", objectives=data.objectives, scales=given)
    pairs, _ = build_pairs(records, objectives=data.objectives, scales=scales_of(records))
    samples, _ = tokenize_pairs(
        pairs[:count], tokenizer(), objectives=data.objectives, scales=scales_of(records), template=data.template,
        max_prompt_length=160 if short else data.max_prompt, max_response_length=32 if short else data.max_response,
    )  # fmt: skip
    return tuple(samples)


def drawn(name: str, count: int) -> list[TokenizedSample]:
    """`count` samples, drawn with seed 0 from all of them."""
    return random.Random(0).sample(load_samples(name), count)


def make_model(layers: int = 11) -> torch.nn.Module:
    """A Qwen2 with V = 32768, H = 384, tied embeddings: 30M parameters in fp32, random weights."""
    from transformers import Qwen2Config, Qwen2ForCausalLM

    torch.manual_seed(0)
    config = Qwen2Config(
        vocab_size=VOCAB, hidden_size=384, intermediate_size=1024, num_hidden_layers=layers, num_attention_heads=6,
        num_key_value_heads=2, max_position_embeddings=4096, tie_word_embeddings=True,
    )  # fmt: skip
    return Qwen2ForCausalLM(config).train()
