"""Conditions that must hold before training starts.

Contract: `check_setup(model, args)` raises for a model that is not a causal LM with a head, that packed rows do not
suit, or that one process would spread over several GPUs. `check_parallelism(trainer)` raises for parallelism other than
over data, for FSDP1, for FSDP or DeepSpeed that would not run, and for clipping that DeepSpeed would do its own way.
`embedding_rows(model)` is the number of token ids that the model knows, `position_limit(model)` that of positions.
"""

from __future__ import annotations

import os
from typing import Any

import torch.distributed as dist
from torch import nn

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
    if args.n_gpu > 1:
        raise ValueError(
            f"{args.n_gpu} GPUs are visible to one process, which would wrap the model in nn.DataParallel; start one "
            "process per GPU with torchrun, or set CUDA_VISIBLE_DEVICES to one of them"
        )
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


def check_parallelism(trainer: Any) -> None:
    """Raise for parallelism that splits one sample's forward over ranks: batches are dealt out per rank."""
    sizes = {"tensor": trainer.get_tp_size(), "context": trainer.get_cp_size(), "sequence": trainer.get_sp_size()}
    for kind, size in sizes.items():
        if size > 1:
            raise ValueError(f"AMoPOTrainer does not support {kind} parallelism (size {size}); use data parallelism")
    if dist.is_available() and dist.is_initialized() and dist.get_world_size() != trainer.args.world_size:
        raise ValueError(
            f"torch.distributed has {dist.get_world_size()} ranks, transformers counts {trainer.args.world_size}: "
            "batches would be dealt out wrongly; on CPUs set use_cpu=True"
        )
    asked = bool(trainer.args.deepspeed) or os.environ.get("ACCELERATE_USE_DEEPSPEED", "false").lower() == "true"
    if asked and trainer.accelerator.distributed_type != "DEEPSPEED":
        raise ValueError(
            f"DeepSpeed was asked for and would not run: accelerate takes {trainer.accelerator.distributed_type.value} "
            "instead; start without its --cpu (ACCELERATE_USE_CPU)"
        )
    if trainer.is_deepspeed_enabled:
        config = trainer.accelerator.state.deepspeed_plugin.deepspeed_config
        if "gradient_clipping" not in config and trainer.args.max_grad_norm != 1.0:
            raise ValueError(
                f"max_grad_norm={trainer.args.max_grad_norm} would be ignored: DeepSpeed clips at 1.0 where its "
                'configuration says nothing; put "gradient_clipping": "auto" into it'
            )
    asked = bool(trainer.args.fsdp) or os.environ.get("ACCELERATE_USE_FSDP", "false").lower() == "true"
    if asked and trainer.args.world_size > 1 and not trainer.is_fsdp_enabled:
        # accelerate knows FSDP on accelerators alone
        raise ValueError(
            "FSDP was asked for and would not run: on CPUs accelerate takes DDP instead, without a word; leave fsdp "
            "out for DDP, or use DeepSpeed's ZeRO-3 to shard the model there"
        )
    fsdp = getattr(trainer.accelerator.state, "fsdp_plugin", None)
    if fsdp is not None and getattr(fsdp, "fsdp_version", 1) != 2:
        raise ValueError(
            "FSDP1 is not supported; use FSDP2: fsdp_version: 2 in accelerate's configuration, or "
            'fsdp_config={"version": 2}'
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
