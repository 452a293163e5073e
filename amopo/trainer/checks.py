"""Conditions that must hold before training starts.

Contract: `check_setup(model, args)` raises for a model that is not a causal LM with a head, that packed rows do not
suit, or that one process would spread over several GPUs. `check_one_device(args)` raises for the last of these alone.
`embedding_rows(model)` is the number of token ids that the model knows, `position_limit(model)` that of positions.
"""

from __future__ import annotations

from torch import nn
from transformers import TrainingArguments

from amopo.head import find_head
from amopo.head_adapters import check_adapters
from amopo.packing.attention import text_config
from amopo.packing.support import check_packing_support
from amopo.trainer.config import AMoPOConfig
from amopo.trainer.forward import causal_lm
from amopo.trainer.samples import Positions


def check_setup(model: nn.Module, args: AMoPOConfig) -> None:
    """Raise for what cannot work, before the model is moved to a device."""
    if not isinstance(args, AMoPOConfig):
        raise TypeError(f"args must be an AMoPOConfig, got {type(args).__name__}")
    if not isinstance(model, nn.Module):
        raise TypeError(
            f"model must be a loaded causal LM, got {type(model).__name__}; load it with "
            "AutoModelForCausalLM.from_pretrained"
        )
    check_one_device(args)
    find_head(model)
    check_adapters(causal_lm(model), training=True)
    check_packing_support(model)
    for name in ("attention_dropout", "attn_pdrop", "attn_dropout", "attention_probs_dropout_prob"):
        value = getattr(text_config(causal_lm(model)), name, None)
        if isinstance(value, float) and value > 0:
            raise ValueError(
                f"attention dropout cannot be trained on packed rows, whose sequences share their attention: "
                f"model.config.{name} is {value}; load the model with {name}=0.0"
            )


def check_one_device(args: TrainingArguments) -> None:
    """Raise where transformers would wrap the model in nn.DataParallel."""
    if args.n_gpu > 1:
        raise ValueError(
            f"{args.n_gpu} GPUs are visible to one process, which would wrap the model in nn.DataParallel; start one "
            "process per GPU with torchrun, or set CUDA_VISIBLE_DEVICES to one of them"
        )


def embedding_rows(model: nn.Module) -> int:
    """How many token ids the model knows; from the module's size, since a sharded weight has no rows."""
    base = causal_lm(model)
    rows = getattr(base.get_input_embeddings(), "num_embeddings", None)
    return rows if isinstance(rows, int) else text_config(base).vocab_size


# What transformers' models call the tables that positions are looked up in.
_POSITION_TABLES = ("wpe", "embed_positions", "position_embeddings", "embed_position", "position_embedding")


def position_limit(model: nn.Module) -> Positions:
    """How many positions the model was made for, and whether looking up more would fail."""
    base = causal_lm(model)
    for name, module in base.named_modules():
        if name.rpartition(".")[2] in _POSITION_TABLES and isinstance(module, nn.Embedding):
            return Positions(module.num_embeddings - getattr(module, "offset", 0), is_table=True)
    for name, buffer in base.named_buffers():
        if name.rpartition(".")[2] in _POSITION_TABLES:
            return Positions(buffer.shape[0], is_table=True)
    count = getattr(text_config(base), "max_position_embeddings", None)
    return Positions(count if isinstance(count, int) and count > 0 else None)
