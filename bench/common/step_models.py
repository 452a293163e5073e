"""Models of known shapes with random weights, for whole steps on a GPU."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn


@dataclass(frozen=True)
class StepShape:
    """A Qwen2-architecture model (Qwen2.5's published configurations)."""

    name: str
    hidden: int
    intermediate: int
    layers: int
    heads: int
    kv_heads: int
    vocab: int
    tied: bool

    def __str__(self) -> str:
        return self.name

    @property
    def head_size(self) -> int:
        return self.hidden // self.heads

    def config(self, *, layers: int | None = None, vocab: int | None = None) -> object:
        """transformers' configuration; `layers` and `vocab` make it smaller."""
        from transformers import Qwen2Config

        return Qwen2Config(
            vocab_size=vocab or self.vocab, hidden_size=self.hidden, intermediate_size=self.intermediate,
            num_hidden_layers=layers or self.layers, num_attention_heads=self.heads,
            num_key_value_heads=self.kv_heads, tie_word_embeddings=self.tied, max_position_embeddings=32768,
        )  # fmt: skip


TINY = StepShape("tiny", 64, 160, 2, 4, 2, 512, True)
STEP_SHAPES = {
    "small": [TINY],
    "cuda": [
        StepShape("qwen2.5-0.5b", 896, 4864, 24, 14, 2, 151936, True),
        StepShape("qwen2.5-7b", 3584, 18944, 28, 28, 4, 152064, False),
    ],
}
# With all gradients a model takes twice its weights; activations and the head want the rest.
LARGEST_SHARE = 0.6


def make_model(shape: StepShape, device: torch.device, dtype: torch.dtype) -> tuple[nn.Module, str]:
    """(model, "all parameters" | "LoRA"): checkpointed, built on the device; LoRA where all gradients do not fit."""
    from transformers import AutoModelForCausalLM

    torch.manual_seed(0)
    with torch.device(device):
        model = AutoModelForCausalLM.from_config(shape.config(), dtype=dtype).train()
    model.gradient_checkpointing_enable({"use_reentrant": False})
    bytes_needed = 2 * sum(p.numel() * p.element_size() for p in model.parameters())
    if device.type != "cuda" or bytes_needed < LARGEST_SHARE * torch.cuda.get_device_properties(device).total_memory:
        return model, "all parameters"
    from peft import LoraConfig, get_peft_model

    model.enable_input_require_grads()
    adapters = LoraConfig(r=16, lora_alpha=32, target_modules="all-linear", exclude_modules=["lm_head"])
    return get_peft_model(model, adapters), "LoRA, r = 16"
