"""Generated responses are scored by program, per variant of the prompt."""

from __future__ import annotations

import math
import statistics

import pytest

pytest.importorskip("transformers")

from amopo.data import read_records, render_prompts
from amopo.data.verifiable import OBJECTIVES, SCALES, score_response, task_from_record, write_splits
from amopo.evaluation import tasks
from amopo.evaluation.tasks import GenerationScores, score_generations
from amopo.trainer.scratch import build_model, train_tokenizer


@pytest.fixture(scope="module")
def records(tmp_path_factory):
    path = write_splits(tmp_path_factory.mktemp("tasks"), {"eval": 12}, seed=3)["eval"]
    return read_records(path, objectives=OBJECTIVES)


@pytest.fixture(scope="module")
def tokenizer(records):
    return train_tokenizer([record.prompt[-1]["content"] for record in records], vocab_size=400)


def test_every_prompt_is_asked_once_per_variant_and_scored_as_written(records, tokenizer, monkeypatch):
    """A generator that answers right to the plain prompt, and repeats the prompt otherwise."""
    answers = {record.prompt[-1]["content"]: task_from_record(record).answer for record in records}
    asked = []

    def answer(model, tokenizer, prompts, **options):
        asked.extend(prompts)
        questions = [prompt.removeprefix("<|user|>").removesuffix("<|end|><|assistant|>") for prompt in prompts]
        return [answers.get(question, question) for question in questions]

    monkeypatch.setattr(tasks, "generate", answer)
    common = {"objectives": OBJECTIVES, "scales": SCALES, "template": "brief"}
    scores = score_generations(None, tokenizer, records, **common)
    rendered = [render_prompts(record.prompt, tokenizer, **common) for record in records]
    assert sorted(asked) == sorted(text for prompts in rendered for text in prompts.values())
    assert scores.mean("plain", "correctness") == 4.0
    for variant in ("plain", *OBJECTIVES):
        expected = [
            score_response(task_from_record(record), text)
            for record, text in zip(records, scores.responses[variant], strict=True)
        ]
        assert list(scores.scores[variant]) == expected
    assert scores.mean("helpfulness", "correctness") < 4.0


def test_means_and_errors_are_those_of_statistics():
    rows = [{"a": 4.0, "b": 1.0}, {"a": 2.0, "b": 0.0}, {"a": 0.0, "b": 2.0}]
    scores = GenerationScores(("a", "b"), {"plain": ["", "", ""]}, {"plain": rows})
    assert scores.mean("plain", "a") == 2.0
    assert scores.error("plain", "a") == pytest.approx(statistics.stdev([4, 2, 0]) / math.sqrt(3))
    assert scores.mean("plain") == pytest.approx(1.5)
    assert scores.error("plain") == pytest.approx(statistics.stdev([2.5, 1.0, 1.0]) / math.sqrt(3))
    assert scores.summary()["plain"]["mean"]["mean"] == pytest.approx(1.5)


def test_a_real_model_gives_scores_on_the_scale(records, tokenizer):
    model = build_model("nano", tokenizer, seed=0)
    scores = score_generations(
        model,
        tokenizer,
        records,
        objectives=OBJECTIVES,
        scales=SCALES,
        template="brief",
        variants=["plain", "conciseness"],
        max_new_tokens=4,
        temperature=1.0,
    )
    assert set(scores.scores) == {"plain", "conciseness"}
    assert all(0 <= value <= 4 for rows in scores.scores.values() for row in rows for value in row.values())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"objectives": ["kindness"], "scales": {"kindness": (0, 4)}}, "'kindness' is not scored by program"),
        ({"variants": ["rubric"]}, "unknown variant 'rubric'"),
    ],
)
def test_what_cannot_be_scored_is_refused(records, tokenizer, options, message):
    with pytest.raises(ValueError, match=message):
        score_generations(None, tokenizer, records, **{"objectives": OBJECTIVES, "scales": SCALES, **options})


def test_no_records_are_refused(tokenizer):
    with pytest.raises(ValueError, match="no records"):
        score_generations(None, tokenizer, [], objectives=OBJECTIVES, scales=SCALES)
