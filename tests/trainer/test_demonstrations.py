"""Preference records as demonstrations to imitate."""

from __future__ import annotations

import pytest

pytest.importorskip("transformers")

from amopo.data import PreferenceRecord, Response, Scale
from amopo.trainer.demonstrations import demonstrations
from amopo.trainer.scratch import train_tokenizer

SCALES = {"a": Scale(0, 4), "b": Scale(0, 4)}
RECORDS = [
    PreferenceRecord(
        id=number,
        prompt=({"role": "user", "content": f"Question {number}? And a long tail of words to cut."},),
        responses=(Response(f"good {number}", {"a": 4.0, "b": 3.0}), Response("bad", {"a": 0.0, "b": 1.0})),
    )
    for number in range(40)
]


@pytest.fixture(scope="module")
def tokenizer():
    return train_tokenizer([record.prompt[0]["content"] for record in RECORDS], vocab_size=400)


def texts(tokenizer, **options):
    rows = demonstrations(
        RECORDS, tokenizer, **{"objectives": ["a", "b"], "scales": SCALES, "template": "brief", **options}
    )
    return [(tokenizer.decode(row.prompt), tokenizer.decode(row.response)) for row in rows]


def test_every_response_is_shown_good_and_bad_alike(tokenizer):
    shown = texts(tokenizer, conditioned=0.0)
    assert [response for _, response in shown] == [
        text for record in RECORDS for text in (f"good {record.id}<|end|>", "bad<|end|>")
    ]
    assert shown[0][0] == "<|user|>Question 0? And a long tail of words to cut.<|end|><|assistant|>"


def test_a_template_shows_the_score_that_the_response_really_has(tokenizer):
    true_scores = {"good": {"a": "4", "b": "3"}, "bad": {"a": "0", "b": "1"}}
    seen = set()
    for prompt, response in texts(tokenizer, conditioned=1.0):
        name, score = prompt.removeprefix("<|user|>")[0], prompt.split("/")[0][-1]
        kind = "bad" if response.startswith("bad") else "good"
        assert score == true_scores[kind][name]
        seen.add((kind, name))
    assert len(seen) == 4, "every objective must come up"


def test_the_share_with_a_template_is_as_asked(tokenizer):
    shown = texts(tokenizer, conditioned=0.5, seed=1)
    share = sum("/4" in prompt for prompt, _ in shown) / len(shown)
    assert 0.3 < share < 0.7
    assert shown == texts(tokenizer, conditioned=0.5, seed=1) != texts(tokenizer, conditioned=0.5, seed=2)


def test_cutting_spares_the_template_and_the_headers(tokenizer):
    for prompt, response in texts(tokenizer, conditioned=1.0, max_prompt_length=20, max_response_length=2):
        assert prompt.startswith(("<|user|>a ", "<|user|>b ")) and "/4\n\n" in prompt and " ... " in prompt
        assert prompt.endswith("<|end|><|assistant|>")
        assert len(tokenizer(response, add_special_tokens=False)["input_ids"]) <= 2


def test_a_share_beyond_one_is_refused(tokenizer):
    with pytest.raises(ValueError, match="between 0 and 1"):
        texts(tokenizer, conditioned=1.5)
