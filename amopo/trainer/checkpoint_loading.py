"""A Trainer that can go on from checkpoints of another number of ranks.

Contract: transformers loads a DeepSpeed checkpoint on as many ranks as wrote it, and an FSDP checkpoint under FSDP
only. `CheckpointLoading` lets DeepSpeed convert the first kind (`fit_checkpoint`, before the engine is made), and
reads the second into one process. Everything else is the parent's.
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import nn
from transformers import Trainer

from amopo.trainer.resume import SCHEDULER_FILE, read_settings
from amopo.trainer.sharded_checkpoints import (
    holds_fsdp,
    load_fsdp_optimizer,
    load_fsdp_weights,
    make_universal,
    separate_step_counts,
)


class CheckpointLoading(Trainer):
    """transformers' Trainer, with other ways to read a checkpoint."""

    def fit_checkpoint(self, checkpoint: str) -> None:
        """Let DeepSpeed read what another number of ranks wrote; FSDP does so by itself."""
        settings = read_settings(checkpoint)
        if not self.is_deepspeed_enabled or settings.get("world_size") == self.args.world_size:
            return
        with self.args.main_process_first(local=self.args.save_on_each_node, desc="converting a checkpoint"):
            make_universal(checkpoint)
        for config in (self.accelerator.state.deepspeed_plugin.deepspeed_config, self.args.hf_deepspeed_config.config):
            config.setdefault("checkpoint", {})["load_universal"] = True

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        if self.is_fsdp_enabled or not holds_fsdp(resume_from_checkpoint):
            return super()._load_from_checkpoint(resume_from_checkpoint, model)
        load_fsdp_weights(resume_from_checkpoint, self.model if model is None else model)

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        if checkpoint is not None and self.is_deepspeed_enabled:
            outer = self.model_wrapped.optimizer
            separate_step_counts(getattr(outer, "optimizer", outer))  # ZeRO wraps the optimizer that counts
        if checkpoint is None or self.is_fsdp_enabled or not holds_fsdp(checkpoint):
            return super()._load_optimizer_and_scheduler(checkpoint)
        load_fsdp_optimizer(checkpoint, self.model, self.optimizer.optimizer)
        path = Path(checkpoint) / SCHEDULER_FILE
        state = torch.load(path, map_location="cpu", weights_only=True)
        self.lr_scheduler.load_state_dict(state)
