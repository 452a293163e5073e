"""Tiny models, samples and settings that train in seconds."""

import random

import torch
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    Phi3Config,
    Phi3ForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
)

from amopo.packing import TokenizedSample
from amopo.trainer import AMoPOConfig

VOCAB = 64
OBJECTIVES = ["helpfulness", "brevity"]
SIZES = {
    "vocab_size": VOCAB,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}


def qwen2(seed=0, **changes):
    torch.manual_seed(seed)
    return Qwen2ForCausalLM(Qwen2Config(**{**SIZES, "initializer_range": 0.2, **changes}))


def llama(seed=0, **changes):
    torch.manual_seed(seed)
    return LlamaForCausalLM(LlamaConfig(**{**SIZES, "initializer_range": 0.2, **changes}))


def mistral(seed=0, **changes):
    torch.manual_seed(seed)
    settings = {**SIZES, "initializer_range": 0.2, "sliding_window": 4, **changes}
    return MistralForCausalLM(MistralConfig(**settings))


def phi3(seed=0, **changes):
    """Has dropout outside of its attention: `resid_pdrop=`."""
    torch.manual_seed(seed)
    return Phi3ForCausalLM(Phi3Config(**{**SIZES, "initializer_range": 0.2, **changes}))


def samples(count, *, seed=0, num_objectives=2, longest=7, vocab=VOCAB, prefix="s"):
    rng = random.Random(seed)

    def tokens():
        return [rng.randrange(3, vocab) for _ in range(rng.randint(2, longest))]

    made = []
    for i in range(count):
        chosen = tokens()
        made.append(TokenizedSample([tokens() for _ in range(num_objectives)], chosen, [*tokens(), 2], f"{prefix}{i}"))
    return made


def config(output_dir, **changes):
    settings = {
        "objectives": OBJECTIVES,
        "output_dir": str(output_dir),
        "use_cpu": True,
        "learning_rate": 1e-2,
        "beta": 2.0,
        "tokens_per_batch": 400,
        "num_train_epochs": 1,
        "logging_steps": 1,
        "save_strategy": "no",
        "disable_tqdm": True,
        "lr_scheduler_type": "constant",
        "max_grad_norm": 0.0,
        "seed": 7,
    }
    return AMoPOConfig(**{**settings, **changes})


def weights_of(model):
    return {name: value.detach().clone() for name, value in model.named_parameters()}
