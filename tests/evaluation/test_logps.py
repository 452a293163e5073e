"""Log-probs of responses, against a forward of each sequence alone."""

from __future__ import annotations

import pytest
import torch

from amopo.evaluation.logps import mean_logps
from amopo.trainer.imitation import Demonstration

transformers = pytest.importorskip("transformers")


@pytest.fixture(scope="module")
def model():
    config = transformers.Qwen2Config(
        vocab_size=50,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=2,
        attention_dropout=0.3,
    )
    torch.manual_seed(0)
    return transformers.Qwen2ForCausalLM(config).double()


@pytest.fixture
def rows():
    draw = torch.Generator().manual_seed(1)

    def tokens(length: int) -> list[int]:
        return torch.randint(1, 50, (length,), generator=draw).tolist()

    lengths = [(3, 1), (1, 5), (12, 7), (4, 4), (20, 2), (2, 9)]
    return [Demonstration(tokens(prompt), tokens(response)) for prompt, response in lengths]


@torch.no_grad()
def alone(model, row: Demonstration) -> float:
    logits = model(torch.tensor([row.prompt + row.response])).logits[0].log_softmax(-1)
    positions = range(len(row.prompt) - 1, len(row) - 1)
    return sum(float(logits[p, t]) for p, t in zip(positions, row.response, strict=True)) / len(row.response)


@pytest.mark.parametrize("token_budget", [1, 40, 10_000])
def test_each_row_is_what_a_forward_of_it_alone_gives(model, rows, token_budget):
    model.eval()
    expected = [alone(model, row) for row in rows]
    calls = []
    found = mean_logps(model, rows, token_budget=token_budget, pad=0, on_batch=lambda *call: calls.append(call))
    assert found.tolist() == pytest.approx(expected, abs=1e-9)
    assert calls[-1] == (6, 6) and (len(calls) == 1) == (token_budget == 10_000)


def test_dropout_is_off_and_the_mode_comes_back(model, rows):
    model.train()
    first, again = mean_logps(model, rows), mean_logps(model, rows)
    assert torch.equal(first, again) and model.training
    model.eval()
    mean_logps(model, rows)
    assert not model.training


def test_no_rows_give_no_numbers(model):
    assert mean_logps(model, []).shape == (0,)


def test_a_budget_of_nothing_is_refused(model, rows):
    with pytest.raises(ValueError, match="token_budget must be at least 1"):
        mean_logps(model, rows, token_budget=0)
