"""What the examples have in common: a small preference dataset and a small model, both made here.

`--model NAME` of an example takes any causal LM, by its Hub name or folder; without it a random model of 0.2M
parameters is made, which learns nothing of use but shows that everything runs, in seconds and offline.
"""

from __future__ import annotations

from amopo.data import Pair, Response, Scale, tokenize_pairs
from amopo.trainer.scratch import SIZES, build_model, train_tokenizer

OBJECTIVES = ["helpfulness", "brevity"]
SCALES = {"helpfulness": Scale(0, 4), "brevity": Scale(0, 4)}

_THINGS = ["a kettle", "a bicycle", "a sundial", "a compass", "a loom", "a lantern", "a barometer", "a plough"]
_QUESTIONS = ["What is {} for?", "How do I look after {}?"]


def preferences() -> list[dict]:
    """16 rows in TRL's conversational preference format, with scores."""
    rows = []
    for number, (thing, question) in enumerate((t, q) for q in _QUESTIONS for t in _THINGS):
        good = f"In short: {thing} does one thing well. Keep it dry, use it often."
        bad = f"Well, about {thing} one could say a great deal, and many people have, and so on, and so forth."
        rows.append(
            {
                "id": f"row-{number}",
                "prompt": [{"role": "user", "content": question.format(thing)}],
                "chosen": [{"role": "assistant", "content": good}],
                "rejected": [{"role": "assistant", "content": bad}],
                "chosen_scores": {"helpfulness": 3.0, "brevity": 4.0},
                "rejected_scores": {"helpfulness": 1.0, "brevity": 0.0},
            }
        )
    return rows


def load(name: str | None = None, *, size: str = "nano", seed: int = 0):
    """(model, tokenizer): a saved one, or a random one with a tokenizer of the dataset's words."""
    if name is not None:
        from transformers import AutoModelForCausalLM, AutoTokenizer

        return AutoModelForCausalLM.from_pretrained(name, dtype="float32"), AutoTokenizer.from_pretrained(name)
    texts = [m["content"] for row in preferences() for key in ("prompt", "chosen", "rejected") for m in row[key]]
    tokenizer = train_tokenizer(texts, vocab_size=SIZES[size].vocab)
    return build_model(size, tokenizer, seed=seed), tokenizer


def samples(tokenizer, rows: list[dict] | None = None):
    """The rows as token ids: per row K prompts, one per objective, and the two responses."""
    pairs = [
        Pair(
            row["id"],
            tuple(row["prompt"]),
            Response(row["chosen"][0]["content"], row["chosen_scores"]),
            Response(row["rejected"][0]["content"], row["rejected_scores"]),
        )
        for row in rows or preferences()
    ]
    return tokenize_pairs(pairs, tokenizer, objectives=OBJECTIVES, scales=SCALES, template="brief")[0]
