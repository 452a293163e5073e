"""Checkpointing of decoder layers, under either name that transformers has for it."""

from __future__ import annotations

from torch import nn


def enable_checkpointing(model: nn.Module) -> None:
    """Checkpoint every decoder layer, as the trainer's `gradient_checkpointing` does."""
    if hasattr(model, "activation_checkpointing_enable"):  # the other name is deprecated where this one is there
        model.activation_checkpointing_enable()
    else:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
