"""Small models made from nothing."""

from __future__ import annotations

import pytest
import torch

pytest.importorskip("transformers")

from amopo.data.chat import ChatEncoder
from amopo.trainer.scratch import SIZES, build_model, parse_scratch, train_tokenizer

TEXTS = ["What is 12 + 30? The sum is 42.", "Sort these words: pear, apple. apple, pear", "  two  spaces, and\na line"]


@pytest.fixture(scope="module")
def tokenizer():
    return train_tokenizer(TEXTS, vocab_size=300)


def test_only_scratch_names_are_taken():
    assert parse_scratch("scratch:tiny") == "tiny"
    assert parse_scratch("some/model") is None
    with pytest.raises(ValueError, match=r"unknown from-scratch model 'scratch:tinny'; did you mean scratch:tiny\?"):
        parse_scratch("scratch:tinny")


@pytest.mark.parametrize("text", [*TEXTS, "never seen: Ωμέγα 🙂 \t x?", " leading and trailing "])
def test_any_text_round_trips(tokenizer, text):
    assert tokenizer.decode(tokenizer(text, add_special_tokens=False)["input_ids"]) == text


def test_every_digit_is_one_token(tokenizer):
    ids = tokenizer("31415", add_special_tokens=False)["input_ids"]
    assert [tokenizer.decode([i]) for i in ids] == list("31415")


def test_the_chat_template_ends_turns_with_eos(tokenizer):
    chat = ChatEncoder(tokenizer)
    assert chat.from_template
    assert chat.end_of_turn_id == tokenizer.eos_token_id != tokenizer.pad_token_id
    assert chat.prompt_text([{"role": "user", "content": "hi"}]) == "<|user|>hi<|end|><|assistant|>"


def test_a_saved_tokenizer_is_the_same_tokenizer(tokenizer, tmp_path):
    from transformers import AutoTokenizer

    tokenizer.save_pretrained(tmp_path)
    # beside a model's configuration, AutoTokenizer goes by the kind of model
    build_model("nano", tokenizer).config.save_pretrained(tmp_path)
    again = AutoTokenizer.from_pretrained(tmp_path)
    messages = [{"role": "user", "content": "What is 12 + 30?"}]
    assert len(again) == len(tokenizer)
    for text in [*TEXTS, "12+345's  DON'T \n\n x"]:
        assert again(text)["input_ids"] == tokenizer(text)["input_ids"]
    assert again.apply_chat_template(messages, tokenize=False) == tokenizer.apply_chat_template(
        messages, tokenize=False
    )
    assert (again.eos_token_id, again.pad_token_id) == (tokenizer.eos_token_id, tokenizer.pad_token_id)


def test_a_vocabulary_that_cannot_hold_all_bytes_is_refused():
    with pytest.raises(ValueError, match="vocab_size=100 is too small"):
        train_tokenizer(TEXTS, vocab_size=100)


def test_the_seed_decides_the_weights_and_nothing_else(tokenizer):
    torch.manual_seed(5)
    expected = torch.rand(1)
    torch.manual_seed(5)
    one, two, other = (build_model("nano", tokenizer, seed=seed) for seed in (1, 1, 2))
    assert torch.equal(torch.rand(1), expected), "the global generator must be left as it was"
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), two.parameters(), strict=True))
    assert not torch.equal(one.lm_head.weight, other.lm_head.weight)


def test_tiny_is_small(tokenizer):
    parameters = sum(p.numel() for p in build_model("tiny", tokenizer).parameters())
    assert 500_000 < parameters < 2_000_000
    assert set(SIZES) == {"nano", "tiny", "small"}


def test_the_model_ends_with_the_tokenizers_eos(tokenizer):
    model = build_model("nano", tokenizer, max_length=4096)
    assert model.config.vocab_size == len(tokenizer)
    assert model.generation_config.eos_token_id == tokenizer.eos_token_id
    assert model.config.max_position_embeddings == 4096
