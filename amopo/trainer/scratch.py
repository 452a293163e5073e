"""Small models made from nothing, for demos and tests.

Contract
--------
`parse_scratch("scratch:tiny")` -> the size's name, or None where the text names no such model.
`train_tokenizer(texts, vocab_size=...)` -> a byte-level BPE tokenizer with a chat template; every digit is one token,
    eos is the end of a turn, there is a pad token of its own, any text in Unicode's normal form NFC round-trips.
`build_model(size, tokenizer, seed=...)` -> a randomly initialised `Qwen2ForCausalLM` in fp32, input and output
    embeddings tied. The same seed gives the same weights, and torch's global generator is left as it was.

Such a model knows nothing: it must first learn to imitate responses (`amopo.trainer.imitation`).
Needs transformers and tokenizers (extra `hf`).
"""

from __future__ import annotations

import difflib
import json
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from transformers import Qwen2ForCausalLM, Qwen2Tokenizer

PREFIX = "scratch:"

# The pad token has the name that Qwen2Tokenizer adds by itself if it is missing.
PAD, END_OF_TURN = "<|endoftext|>", "<|end|>"
ROLES = ("system", "user", "assistant")

# A turn costs two tokens beside its text: the mark of the role, the end. Rows of small tasks are short, so it matters.
CHAT_TEMPLATE = (
    "{% for message in messages %}"
    f"{{{{ '<|' + message['role'] + '|>' + message['content'] + '{END_OF_TURN}' }}}}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)


@dataclass(frozen=True)
class Size:
    """The shape of a from-scratch model; parameters without embeddings are about `layers * (4 h^2 + 3 h * i)`."""

    hidden: int
    intermediate: int
    layers: int
    heads: int
    vocab: int
    max_length: int = 2048


SIZES: dict[str, Size] = {
    "nano": Size(hidden=64, intermediate=160, layers=2, heads=2, vocab=768),
    "tiny": Size(hidden=128, intermediate=352, layers=4, heads=4, vocab=1024),
    "small": Size(hidden=320, intermediate=864, layers=6, heads=5, vocab=4096),
}


def parse_scratch(name: str) -> str | None:
    """The size in "scratch:SIZE"; None for any other model name. An unknown size raises ValueError."""
    if not name.startswith(PREFIX):
        return None
    size = name.removeprefix(PREFIX)
    if size not in SIZES:
        close = difflib.get_close_matches(size, SIZES, n=1)
        hint = f"; did you mean {PREFIX}{close[0]}?" if close else ""
        raise ValueError(f"unknown from-scratch model {name!r}{hint} Known: {', '.join(PREFIX + s for s in SIZES)}")
    return size


def train_tokenizer(texts: Iterable[str], *, vocab_size: int) -> Qwen2Tokenizer:
    """A byte-level BPE tokenizer trained on `texts`, with the chat template above.

    It is a `Qwen2Tokenizer`, because `AutoTokenizer` makes one of whatever it finds beside a Qwen2 model.
    """
    from tokenizers import pre_tokenizers, trainers
    from transformers import Qwen2Tokenizer

    special = [PAD, END_OF_TURN, *(f"<|{role}|>" for role in ROLES)]
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    smallest = len(alphabet) + len(special)
    if vocab_size < smallest:
        raise ValueError(f"vocab_size={vocab_size} is too small: 256 bytes and {len(special)} marks need {smallest}")
    pipeline = Qwen2Tokenizer().backend_tokenizer  # normalisation and pre-tokenisation, still without a vocabulary
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size, special_tokens=special, initial_alphabet=alphabet, show_progress=False
    )
    pipeline.train_from_iterator(texts, trainer)
    learnt = json.loads(pipeline.to_str())["model"]
    tokenizer = Qwen2Tokenizer(
        vocab=learnt["vocab"],
        merges=[tuple(merge) for merge in learnt["merges"]],
        unk_token=None,
        eos_token=END_OF_TURN,
        pad_token=PAD,
        additional_special_tokens=special[2:],
    )
    tokenizer.chat_template = CHAT_TEMPLATE
    return tokenizer


def build_model(
    size: str, tokenizer: Qwen2Tokenizer, *, seed: int = 0, max_length: int | None = None
) -> Qwen2ForCausalLM:
    """A Qwen2 model of that size with random weights and the tokenizer's vocabulary."""
    from transformers import Qwen2Config, Qwen2ForCausalLM

    shape = SIZES[size]
    config = Qwen2Config(
        vocab_size=len(tokenizer),
        hidden_size=shape.hidden,
        intermediate_size=shape.intermediate,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        num_key_value_heads=shape.heads,
        max_position_embeddings=max(max_length or 0, shape.max_length),
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = Qwen2ForCausalLM(config)
    model.generation_config.eos_token_id = tokenizer.eos_token_id
    model.generation_config.pad_token_id = tokenizer.pad_token_id
    return model
