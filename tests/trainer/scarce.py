"""Trainers whose model runs out of memory when a test says so."""

from __future__ import annotations

import torch
from tiny_runs import config, qwen2, samples

from amopo.trainer import AMoPOTrainer


def trainer_of(tmp_path, *, fails, **changes):
    """A trainer whose model has no memory for rows that `fails` says so of; (trainer, tokens of all rows)."""
    trainer = AMoPOTrainer(qwen2(), config(tmp_path, **changes), train_dataset=samples(12))
    seen: list[int] = []
    forward = trainer.model.forward

    def limited(*args, **kwargs):
        tokens = kwargs["input_ids"].shape[1]
        seen.append(tokens)
        if fails(tokens, len(seen)):
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 is full.\nmore")
        return forward(*args, **kwargs)

    trainer.model.forward = limited
    return trainer, seen
