"""`amopo memory plan | simulate | profile`: what a training step takes, computed, simulated, measured."""

from __future__ import annotations

DESCRIPTION = "What a training step takes on one GPU: computed from sizes, simulated with the model's code, measured."

# subcommand -> (module, one line for the overview)
SUBCOMMANDS: dict[str, tuple[str, str]] = {
    "plan": ("amopo.cli.memory_plan", "memory by phase, computed from the model's sizes; what fits, and what would"),
    "simulate": ("amopo.cli.memory_simulate", "the model's own code on tensors without storage, against the plan"),
    "profile": ("amopo.cli.memory_profile", "real steps of random weights, measured, against the plan"),
}
