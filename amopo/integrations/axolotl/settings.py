"""The settings in axolotl's configuration: the plugin's own keys, and what of the others cannot go with them.

`AMoPOArgs` declares the keys. `settings_of(cfg)` -> `Settings`, the loss of `trainer_class`; it raises ValueError for
what cannot be right, by name, and reads no data.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from pydantic import BaseModel

from amopo.data.scales import check_objectives
from amopo.preference_loss import LossSettings

# What axolotl would do to batches that are not its own.
_REFUSED = {
    "rl": "axolotl's RL builder gives a plugin's trainer no model; the plugin replaces it",
    "pretraining_dataset": "the data are preferences",
    "sample_packing": "samples are padded",
    "streaming": "samples are tokenised before training",
    "batch_flattening": "samples are padded",
    "curriculum_sampling": "samples are shuffled",
}


class AMoPOArgs(BaseModel):
    """The plugin's keys in axolotl's YAML."""

    amopo_objectives: list[str] | None = None
    amopo_scales: dict[str, list[float]] | None = None
    amopo_template: str = "rubric"
    amopo_max_prompt_length: int | None = None
    amopo_max_response_length: int | None = None
    amopo_beta: float = 0.8
    amopo_gamma: float = 0.0
    amopo_weights: str | list[float] = "gaussian"
    amopo_pooled: str = "union"


@dataclass(frozen=True)
class Settings:
    """The loss of `trainer_class`; the arguments of `amopo.fused_loss` of the same names."""

    objectives: tuple[str, ...]
    beta: float = 0.8
    gamma: float = 0.0
    weights: str | tuple[float, ...] = "gaussian"
    pooled: str = "union"

    def __post_init__(self) -> None:
        check_objectives(self.objectives)
        if not isinstance(self.weights, str) and len(self.weights) != len(self.objectives):
            raise ValueError(f"amopo_weights has {len(self.weights)} numbers for {len(self.objectives)} objectives")
        self.loss(seed=0, step=0, device=torch.device("cpu")).check()

    def loss(self, *, seed: int, step: int, device: torch.device) -> LossSettings:
        """The settings of one call of the loss."""
        weights = self.weights if isinstance(self.weights, str) else torch.tensor(self.weights, device=device)
        return LossSettings(self.beta, self.gamma, "amopo", weights, self.pooled, None, None, seed, step)


def settings_of(cfg: Any) -> Settings:
    """The settings in axolotl's configuration, after everything that cannot be right was refused by name."""
    for name, why in _REFUSED.items():
        if cfg.get(name):
            raise ValueError(f"{name} cannot be set with AMoPOPlugin: {why}; leave it out")
    if (cfg.get("context_parallel_size") or 1) > 1:
        raise ValueError("context_parallel_size splits sequences, which AMoPOPlugin does not support; leave it out")
    if not cfg.get("amopo_objectives"):
        raise ValueError("AMoPOPlugin needs amopo_objectives, e.g. amopo_objectives: [helpfulness, correctness]")
    weights = cfg.get("amopo_weights", "gaussian")
    return Settings(
        objectives=tuple(cfg.get("amopo_objectives")),
        beta=float(given(cfg, "amopo_beta", 0.8)),
        gamma=float(given(cfg, "amopo_gamma", 0.0)),
        weights=(weights or "gaussian") if isinstance(weights, str | None) else tuple(map(float, weights)),
        pooled=given(cfg, "amopo_pooled", "union"),
    )


def given(cfg: Any, name: str, default: Any) -> Any:
    """A value of axolotl's configuration, whose dictionary answers None for what is not there."""
    value = cfg.get(name)
    return default if value is None else value
