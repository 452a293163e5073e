"""Responses from a model, many prompts at once."""

from __future__ import annotations

import pytest
import torch

pytest.importorskip("transformers")

from amopo.evaluation.generate import generate, left_pad
from amopo.trainer.imitation import Demonstration, imitate
from amopo.trainer.scratch import build_model, train_tokenizer

WORDS = ["red", "green", "blue", "a much longer name of a colour"]


@pytest.fixture(scope="module")
def echo():
    """A model that has learnt to repeat the word it was given, then to stop."""
    tokenizer = train_tokenizer([f"say {word}" for word in WORDS], vocab_size=300)
    model = build_model("nano", tokenizer, seed=0)
    rows = []
    for word in WORDS:
        prompt = tokenizer(f"say {word}:", add_special_tokens=False)["input_ids"]
        response = tokenizer(word, add_special_tokens=False)["input_ids"] + [tokenizer.eos_token_id]
        rows += [Demonstration(prompt, response)] * 30
    imitate(model, rows, epochs=8, token_budget=256, peak_lr=5e-3)
    return model, tokenizer


def test_rows_stand_at_the_right_edge():
    input_ids, mask = left_pad([[5], [6, 7, 8]], pad=0)
    assert input_ids.tolist() == [[0, 0, 5], [6, 7, 8]]
    assert mask.tolist() == [[0, 0, 1], [1, 1, 1]]


@pytest.mark.parametrize("batch_size", [1, 3, 64])
def test_responses_come_in_order_and_padding_changes_nothing(echo, batch_size):
    model, tokenizer = echo
    prompts = [f"say {word}:" for word in reversed(WORDS)]
    assert generate(model, tokenizer, prompts, max_new_tokens=20, batch_size=batch_size) == list(reversed(WORDS))


def test_a_response_stops_at_the_limit(echo):
    model, tokenizer = echo
    (response,) = generate(model, tokenizer, [f"say {WORDS[-1]}:"], max_new_tokens=2)
    assert WORDS[-1].startswith(response) and len(tokenizer(response, add_special_tokens=False)["input_ids"]) == 2


def test_sampling_follows_the_seed_and_leaves_the_generator_alone(echo):
    model, tokenizer = echo
    prompts = ["say red:"] * 16

    def draw(seed):
        return generate(model, tokenizer, prompts, max_new_tokens=6, temperature=4.0, seed=seed)

    torch.manual_seed(5)
    expected = torch.rand(1)
    torch.manual_seed(5)
    first = draw(1)
    assert torch.equal(torch.rand(1), expected)
    assert draw(1) == first != draw(2)
    assert len(set(first)) > 1


def test_the_mode_of_the_model_is_kept(echo):
    model, tokenizer = echo
    for training in (True, False):
        model.train(training)
        generate(model, tokenizer, ["say red:"], max_new_tokens=2)
        assert model.training is training


def test_progress_counts_prompts(echo):
    model, tokenizer = echo
    seen = []
    generate(model, tokenizer, ["say red:"] * 5, max_new_tokens=2, batch_size=2, on_batch=lambda *n: seen.append(n))
    assert seen == [(2, 5), (4, 5), (5, 5)]
    assert generate(model, tokenizer, []) == []


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_new_tokens": 0}, "max_new_tokens must be at least 1"),
        ({"batch_size": 0}, "batch_size must be at least 1"),
        ({"temperature": -1.0}, "temperature must be 0"),
    ],
)
def test_options_that_cannot_work_are_refused(echo, options, message):
    with pytest.raises(ValueError, match=message):
        generate(*echo, ["say red:"], **options)


def test_an_empty_prompt_is_refused(echo):
    with pytest.raises(ValueError, match="prompt 1 has no tokens"):
        generate(*echo, ["say red:", ""])
