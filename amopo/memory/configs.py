"""A transformers configuration of a shape, and samples of a workload, for what runs the model's own code."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from amopo.memory.settings import SampleShape
from amopo.memory.shapes import ModelShape
from amopo.packing.sample import TokenizedSample

_CLASSES = {
    "llama": "LlamaConfig",
    "mistral": "MistralConfig",
    "qwen2": "Qwen2Config",
    "qwen3": "Qwen3Config",
    "gemma": "GemmaConfig",
    "gemma2": "Gemma2Config",
    "gemma3_text": "Gemma3TextConfig",
}


def config_of(shape: ModelShape) -> Any:
    """The configuration that transformers builds a model of this shape from."""
    import transformers

    if shape.model_type not in _CLASSES:
        raise ValueError(f"model type {shape.model_type!r} is not one of {', '.join(_CLASSES)}")
    sizes: dict[str, Any] = {
        "hidden_size": shape.hidden,
        "intermediate_size": shape.intermediate,
        "num_hidden_layers": shape.layers,
        "num_attention_heads": shape.heads,
        "num_key_value_heads": shape.kv_heads,
        "head_dim": shape.head_dim,
        "vocab_size": shape.vocab,
        "tie_word_embeddings": shape.tied,
    }
    if shape.model_type not in ("gemma", "gemma2", "gemma3_text"):
        sizes |= {"attention_bias": shape.attention_bias, "mlp_bias": shape.mlp_bias}
    if shape.model_type == "gemma2":
        sizes |= {
            "attn_logit_softcapping": shape.attention_softcap, "final_logit_softcapping": shape.softcap,
        }  # fmt: skip
    return getattr(transformers, _CLASSES[shape.model_type])(**sizes)


def counted_parameters(config: Mapping[str, Any]) -> int | None:
    """Parameters of the model that transformers builds from the values of a config.json, without storage.

    None where transformers is not installed, or does not know the model as a causal LM.
    """
    try:
        from transformers import AutoConfig, AutoModelForCausalLM
    except ImportError:
        return None
    config = dict(config)
    config = dict(config.get("text_config") or config)
    try:
        built = AutoConfig.for_model(config.pop("model_type", ""), **config)
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(built)
            model.tie_weights()
    except Exception:  # whatever the modelling code of any family says of values that it does not expect
        return None
    return sum(parameter.numel() for parameter in model.parameters())


def samples_of(sample: SampleShape) -> list[TokenizedSample]:
    """Samples of exactly these lengths, which share what `sample.sharing` shares and nothing by chance."""
    names = range(10, 10 + sample.objectives)
    own = max(sample.template, 1)  # a prompt without a template of its own still differs in its first token

    def prompt(name: int) -> list[int]:
        if sample.sharing == "tree":  # the template stands after the prompt
            return [9] * sample.prompt + [name] * sample.template
        return [name] * own + [9] * (sample.prompt + sample.template - own)

    return [
        TokenizedSample([prompt(name) for name in names], [2] * sample.chosen, [3] * sample.rejected, number)
        for number in range(sample.samples)
    ]
