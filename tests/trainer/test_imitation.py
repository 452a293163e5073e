"""Supervised warm-up on responses."""

from __future__ import annotations

import random

import pytest
import torch

pytest.importorskip("transformers")

from transformers import Qwen2Config, Qwen2ForCausalLM

from amopo.trainer.imitation import Demonstration, batches, collate, imitate, imitation_loss, learning_rate


def tiny_model(dtype=torch.float32):
    torch.manual_seed(0)
    config = Qwen2Config(
        vocab_size=23,
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        tie_word_embeddings=True,
    )
    return Qwen2ForCausalLM(config).to(dtype)


def demonstrations(count: int, seed: int = 0) -> list[Demonstration]:
    draw = random.Random(seed)
    rows = []
    for _ in range(count):
        prompt = [draw.randrange(3, 23) for _ in range(draw.randrange(1, 9))]
        rows.append(Demonstration(prompt, [prompt[-1], 2]))
    return rows


def test_the_loss_is_the_mean_over_response_tokens_of_each_row_alone():
    model, rows = tiny_model(torch.float64), demonstrations(5)
    input_ids, labels = collate(rows, pad=0)
    terms = []
    for row in rows:  # one row at a time, nothing padded, plain log-softmax
        ids = torch.tensor([row.prompt + row.response])
        logps = model(input_ids=ids).logits.double().log_softmax(-1)[0]
        for position in range(len(row.prompt), len(row)):
            terms.append(-logps[position - 1, ids[0, position]])
    # the head computes in fp32
    assert imitation_loss(model, input_ids, labels).item() == pytest.approx(torch.stack(terms).mean().item(), rel=1e-6)


def test_every_row_is_visited_once_per_epoch_within_the_budget():
    rows = demonstrations(300)
    made = list(batches(rows, token_budget=64, seed=3, window=100))
    assert sorted(map(id, (row for batch in made for row in batch))) == sorted(map(id, rows))
    assert all(len(batch) * max(map(len, batch)) <= 64 for batch in made)
    # similar lengths together: hardly any padding
    padded = sum(len(batch) * max(map(len, batch)) for batch in made)
    assert padded <= 1.1 * sum(map(len, rows))


def test_the_order_depends_on_the_seed_alone():
    rows = demonstrations(100)
    assert list(batches(rows, token_budget=64, seed=1)) == list(batches(rows, token_budget=64, seed=1))
    assert list(batches(rows, token_budget=64, seed=1)) != list(batches(rows, token_budget=64, seed=2))


def test_a_row_longer_than_the_budget_is_refused():
    with pytest.raises(ValueError, match=r"a demonstration of 12 tokens does not fit token_budget=10"):
        list(batches([Demonstration([1] * 10, [1, 2])], token_budget=10, seed=0))


def test_a_model_learns_to_imitate():
    model, rows = tiny_model(), demonstrations(400)
    reported = []
    result = imitate(
        model, rows, epochs=20, token_budget=256, peak_lr=1e-2, on_step=lambda step, total, loss: reported.append(loss)
    )
    assert result.first_loss > 2.5 and result.last_loss < 0.2
    assert len(reported) == result.steps and reported[0] is not None and reported[1] is None
    held_out = demonstrations(50, seed=9)
    with torch.no_grad():
        # guessing the word among twenty would give 1.5
        assert imitation_loss(model, *collate(held_out, pad=0)).item() < 1.0


def test_the_same_seed_gives_the_same_model():
    one, two = tiny_model(), tiny_model()
    for model in (one, two):
        imitate(model, demonstrations(60), epochs=1, token_budget=64, seed=4)
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), two.parameters(), strict=True))


def test_a_part_of_an_epoch_is_a_part_of_its_steps():
    rows = demonstrations(100)
    whole = len(list(batches(rows, token_budget=64, seed=0)))
    assert imitate(tiny_model(), rows, epochs=0.5, token_budget=64).steps == round(whole / 2)


def test_the_rate_rises_then_falls_to_a_tenth():
    rates = [learning_rate(step, 100, 1.0) for step in range(100)]
    assert rates[0] == pytest.approx(0.2) and max(rates) == pytest.approx(1.0)
    assert rates[5:] == sorted(rates[5:], reverse=True)
    assert rates[-1] == pytest.approx(0.1, abs=0.01)


def test_nothing_to_learn_is_refused():
    with pytest.raises(ValueError, match="at least one demonstration"):
        imitate(tiny_model(), [])
    with pytest.raises(ValueError, match="epochs must be positive"):
        imitate(tiny_model(), demonstrations(2), epochs=0)
    with pytest.raises(ValueError, match="at least one token in its response"):
        Demonstration([1], [])
