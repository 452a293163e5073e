"""How a model ranks pairs, without a training run."""

from __future__ import annotations

import pytest
import torch

pytest.importorskip("transformers")

from amopo.evaluation.preferences import preference_metrics, without_prefix
from amopo.packing import TokenizedSample
from amopo.trainer.scratch import build_model, train_tokenizer


@pytest.fixture(scope="module")
def model():
    return build_model("nano", train_tokenizer(["abc"], vocab_size=280), seed=0)


SAMPLES = [
    TokenizedSample(([10, 11, 12], [20, 21]), [30, 31, 32, 1], [40, 1], id=7),
    TokenizedSample(([13], [22, 23, 24]), [33, 1], [41, 42, 43, 1], id="seven"),
]


def mean_logp(model, prompt, response) -> float:
    """By the plain forward of one sequence, in fp64."""
    with torch.no_grad():
        logps = model(input_ids=torch.tensor([prompt + response])).logits[0].double().log_softmax(-1)
    places = range(len(prompt) - 1, len(prompt) + len(response) - 1)
    return sum(logps[place, token].item() for place, token in zip(places, response, strict=True)) / len(response)


def test_margins_and_accuracies_are_those_of_each_sequence_alone(model):
    found = preference_metrics(model, SAMPLES, objectives=["a", "b"], beta=2.0, tokens_per_batch=64, use_cpu=True)
    for k, name in enumerate(("a", "b")):
        margins = [
            2.0 * (mean_logp(model, s.prompts[k], s.chosen) - mean_logp(model, s.prompts[k], s.rejected))
            for s in SAMPLES
        ]
        assert found[f"rewards/margins/{name}"] == pytest.approx(sum(margins) / 2, abs=1e-5)
        assert found[f"rewards/accuracies/{name}"] == sum(margin > 0 for margin in margins) / 2
    assert not any("runtime" in name or "per_second" in name for name in found)


def test_the_model_is_left_as_it_was(model, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    preference_metrics(model, SAMPLES, objectives=["a", "b"], use_cpu=True)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert "forward" not in model.__dict__, "the forward must be restored"
    assert not list(tmp_path.iterdir())


def test_names_lose_the_prefix_of_evaluation():
    logged = {"eval_loss": 1.0, "eval_rewards/margins": 2.0, "eval_runtime": 3.0, "eval_samples_per_second": 4.0}
    assert without_prefix({**logged, "epoch": 1.0}) == {"loss": 1.0, "rewards/margins": 2.0}
