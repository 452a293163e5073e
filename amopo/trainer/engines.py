"""Whether the engine that a trainer was asked for is the one that runs, and one that is supported.

Contract: each is called at the end of a Trainer's `__init__`, when accelerate has chosen; `check_...` raise ValueError.
`check_parallelism(trainer)`: for parallelism other than over data, where several ranks would run as if they were alone,
where DeepSpeed or FSDP was asked for and accelerate takes another engine without a word, and for clipping that
DeepSpeed would do its own way. `check_fsdp_version(trainer)`: for FSDP1, on which amopo's own trainers are not tested.
`keep_output_dtype(trainer)`: log-probs leave an FSDP2 model in fp32 under bf16 and fp16 too.
"""

from __future__ import annotations

import dataclasses
import os
from typing import Any

import torch.distributed as dist


def check_parallelism(trainer: Any) -> None:
    """Raise for parallelism that splits one sample's forward, and for another engine than the one asked for."""
    args, accelerator = trainer.args, trainer.accelerator
    for kind, name in (("tensor", "get_tp_size"), ("context", "get_cp_size"), ("sequence", "get_sp_size")):
        # transformers 4, which LLaMA-Factory allows, has some of these ways, or none
        size = getattr(trainer, name)() if hasattr(trainer, name) else 1
        if size > 1:
            raise ValueError(
                f"{type(trainer).__name__} does not support {kind} parallelism (size {size}); use data parallelism"
            )
    if dist.is_available() and dist.is_initialized() and dist.get_world_size() != args.world_size:
        raise ValueError(
            f"torch.distributed has {dist.get_world_size()} ranks, transformers counts {args.world_size}: "
            "batches would be dealt out wrongly; on CPUs set use_cpu=True"
        )
    if _is_asked_for(args.deepspeed, "ACCELERATE_USE_DEEPSPEED") and accelerator.distributed_type != "DEEPSPEED":
        raise ValueError(
            f"DeepSpeed was asked for and would not run: accelerate takes {accelerator.distributed_type.value} "
            "instead; start without its --cpu (ACCELERATE_USE_CPU)"
        )
    if trainer.is_deepspeed_enabled:
        config = accelerator.state.deepspeed_plugin.deepspeed_config
        if "gradient_clipping" not in config and args.max_grad_norm != 1.0:
            raise ValueError(
                f"max_grad_norm={args.max_grad_norm} would be ignored: DeepSpeed clips at 1.0 where its "
                'configuration says nothing; put "gradient_clipping": "auto" into it'
            )
    if _is_asked_for(args.fsdp, "ACCELERATE_USE_FSDP") and args.world_size > 1 and not trainer.is_fsdp_enabled:
        # accelerate knows FSDP on accelerators alone
        raise ValueError(
            "FSDP was asked for and would not run: on CPUs accelerate takes DDP instead, without a word; leave fsdp "
            "out for DDP, or use DeepSpeed's ZeRO-3 to shard the model there"
        )


def check_fsdp_version(trainer: Any) -> None:
    """Raise for FSDP1."""
    fsdp = getattr(trainer.accelerator.state, "fsdp_plugin", None)
    if fsdp is not None and getattr(fsdp, "fsdp_version", 1) != 2:
        raise ValueError(
            "FSDP1 is not supported; use FSDP2: fsdp_version: 2 in accelerate's configuration, or "
            'fsdp_config={"version": 2}'
        )


def keep_output_dtype(trainer: Any) -> None:
    """Let FSDP2 leave a model's outputs as they are: accelerate's policy would cast log-probs to the compute dtype."""
    plugin = getattr(trainer.accelerator.state, "fsdp_plugin", None)
    policy = getattr(plugin, "mixed_precision_policy", None)
    if getattr(policy, "output_dtype", None) is not None:  # FSDP1's policy has none
        plugin.mixed_precision_policy = dataclasses.replace(policy, output_dtype=None)


def _is_asked_for(argument: Any, variable: str) -> bool:
    """Whether a training argument, or the environment that `accelerate launch` sets, names the engine."""
    return bool(argument) or os.environ.get(variable, "false").lower() == "true"
