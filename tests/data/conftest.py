"""Files, records and tokenizers for the data tests."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

CHATML = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
FROM_0_TO_4 = ("helpfulness", "correctness", "coherence", "complexity", "verbosity")


@pytest.fixture
def write_jsonl(tmp_path):
    """Writes rows (dicts, or text as it is) to data.jsonl and gives the path."""

    def write(*rows: dict | str) -> Path:
        path = tmp_path / "data.jsonl"
        path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))
        return path

    return write


@pytest.fixture
def grouped_row():
    """A grouped row whose responses have the given scores, and the scales of helpfulness and its like."""

    def make(*scores: dict, texts=None, prompt="What is snow?", scales=None, **fields) -> dict:
        texts = texts or [f"answer {i}" for i in range(len(scores))]
        responses = [{"text": text, "scores": score} for text, score in zip(texts, scores, strict=True)]
        names = [name for score in scores if isinstance(score, dict) for name in score]
        scales = {**{name: [0, 4] for name in names if name in FROM_0_TO_4}, **(scales or {})}
        return {"prompt": prompt, "responses": responses, **({"scales": scales} if scales else {}), **fields}

    return make


@pytest.fixture
def write_json(tmp_path):
    """Writes one JSON value, or text as it is, to data.json and gives the path."""

    def write(value: object) -> Path:
        path = tmp_path / "data.json"
        path.write_text(value if isinstance(value, str) else json.dumps(value), encoding="utf-8")
        return path

    return write


@pytest.fixture(scope="session")
def make_tokenizer():
    """A character-level or byte-level BPE tokenizer with a chat template."""
    pytest.importorskip("transformers", reason="tokenizer tests need transformers")
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    def make(*, chat_template: str | None = CHATML, eos: str | None = "<|im_end|>", corpus=(), vocab_size=261):
        tokenizer = Tokenizer(models.BPE())
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        tokenizer.decoder = decoders.ByteLevel()
        special = ["<|pad|>", "<|im_start|>", "<|im_end|>", "<|eot|>", "<|end|>"]
        trainer = trainers.BpeTrainer(
            vocab_size=vocab_size,
            special_tokens=special,
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        )
        tokenizer.train_from_iterator(corpus, trainer)
        fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token=eos, pad_token="<|pad|>")
        fast.chat_template = chat_template
        return fast

    return make


@pytest.fixture(scope="session")
def tokenizer(make_tokenizer):
    """One token per byte, ChatML."""
    return make_tokenizer()


@pytest.fixture(scope="session")
def real_data():
    """The file of a real data set, from $AMOPO_DATA or beside the checkout; skips where it is absent."""
    root = Path(os.environ.get("AMOPO_DATA") or Path(__file__).resolve().parents[3] / "shared" / "data")

    def find(name: str) -> Path:
        path = root / name / "grouped.jsonl"
        if not path.is_file():
            pytest.skip(f"real data {name} is not here; set AMOPO_DATA to the folder that holds it")
        return path

    return find
