"""`amopo doctor` says yes of a model that packs, no where something differs, and what it was wrongly asked."""

from __future__ import annotations

import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")


@pytest.fixture
def saved(tmp_path):
    """A saved tiny model with a tokenizer."""
    from tokenizers import Tokenizer, models, pre_tokenizers

    torch.manual_seed(0)
    sizes = {
        "vocab_size": 64, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2,
        "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 128, "initializer_range": 0.2,
    }  # fmt: skip
    transformers.Qwen2ForCausalLM(transformers.Qwen2Config(**sizes)).save_pretrained(tmp_path / "model")
    tokenizer = Tokenizer(models.WordLevel({f"w{i}": i for i in range(64)}, unk_token="w0"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    wrapped = transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="w0")
    wrapped.save_pretrained(tmp_path / "model")
    return str(tmp_path / "model")


@pytest.mark.parametrize("sharing", ["none", "pair", "tree"])
def test_yes(amopo, saved, sharing):
    outcome = amopo("doctor", "--model", saved, "--sharing", sharing, "--device", "cpu")
    assert outcome.status == 0, outcome.err
    assert "yes: packed rows are exact for this model here" in outcome.out
    assert f"Qwen2ForCausalLM, float32, cpu, sharing={sharing}" in outcome.out and "tokens stand for" in outcome.out


def test_a_process_of_several_may_ask_too(amopo, saved, monkeypatch):
    """A forward with gradients, but no training: under torchrun without a group it is not refused."""
    monkeypatch.setattr("amopo.trainer.wrapping._STARTED", 2)
    outcome = amopo("doctor", "--model", saved, "--device", "cpu")
    assert outcome.status == 0 and "yes: packed rows are exact" in outcome.out, outcome.err


def test_half_precision_has_its_own_rounding(amopo, saved):
    outcome = amopo("doctor", "--model", saved, "--dtype", "bfloat16", "--device", "cpu")
    assert outcome.status == 0, outcome.err
    assert "Qwen2ForCausalLM, bfloat16" in outcome.out


def test_no(amopo, saved, monkeypatch):
    from amopo.trainer import self_check

    monkeypatch.setitem(self_check.ALLOWED, torch.float32, (1e-12, 1e-12))
    outcome = amopo("doctor", "--model", saved, "--device", "cpu")
    assert outcome.status == 1 and "yes" not in outcome.out
    assert outcome.err.startswith("amopo: error: no: packed rows of Qwen2ForCausalLM") and outcome.err.count("\n") == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--sharing", "all"], "--sharing: 'all' is not known; known: none, pair, tree"),
        (["--objectives", "0"], "--objectives must be at least 1"),
        (["--device", "tpu9"], "--device: tpu9 cannot be used"),
        (["--device", "cpu", "--dtype", "int8"], "int8"),
    ],
)
def test_what_cannot_be(amopo, saved, arguments, message):
    outcome = amopo("doctor", "--model", saved, *arguments)
    assert outcome.status == 2 and message in outcome.err
