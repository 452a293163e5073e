"""The loss as a function of per-sequence statistics: weights, objective, reduction over samples, metrics.

Inputs are `SequenceStats` with fields `[B, K, 2]` (chosen = index 0); all work here is `[B, K]`-sized. This is the one
copy of the loss's arithmetic; what produces the statistics (fused head, patched model, another library) is above it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from amopo import objectives as objective_registry
from amopo.objectives.official import GAMMA as OFFICIAL_GAMMA
from amopo.objectives.official import official_losses, official_weights
from amopo.weights import WeightSource, WeightStats, resolve_weights
from amopo_kernels.mobt import margins, pool_probabilities
from amopo_kernels.segments import SequenceStats

Objective = str | Callable[..., Tensor]
Weights = str | Tensor | WeightSource


@dataclass(frozen=True)
class FusedLoss:
    """Result of one call; chosen = index 0 of the last dimension.

    loss: 0-dim, `loss_sum / normalizer`. loss_sum: sum over the samples. num_samples: B. weights: `[B, K]`, detached.
    sum_logps: `[B, K, 2]`, differentiable. lengths: `[B, K, 2]` response tokens. metrics: detached means over the
    samples, `[K]` each (`amopo/alpha_entropy` 0-dim).
    """

    loss: Tensor
    loss_sum: Tensor
    num_samples: int
    weights: Tensor
    sum_logps: Tensor
    lengths: Tensor
    metrics: dict[str, Tensor]


@dataclass(frozen=True)
class LossSettings:
    """How the loss follows from the statistics; the arguments of `fused_loss` of the same names."""

    beta: float
    gamma: float
    objective: Objective
    weights: Weights
    pooled: str
    preset: str | None
    normalizer: float | Tensor | None
    seed: int
    step: int | None

    def check(self) -> None:
        """Raise ValueError on values that cannot be right, before any work."""
        if not isinstance(self.beta, (int, float)) or not 0 < self.beta < float("inf"):
            raise ValueError(f"beta must be a positive number, got {self.beta!r}")
        if not isinstance(self.gamma, (int, float)) or not abs(self.gamma) < float("inf"):
            raise ValueError(f"gamma must be a finite number, got {self.gamma!r}")
        if isinstance(self.normalizer, (int, float)) and not 0 < self.normalizer < float("inf"):
            raise ValueError(f"normalizer must be a positive number (samples of the step), got {self.normalizer!r}")
        if self.pooled not in ("union", "sum"):
            raise ValueError(f"pooled must be 'union' or 'sum', got {self.pooled!r}")
        if isinstance(self.objective, str):
            objective_registry.get(self.objective)
        if self.preset not in (None, "official"):
            raise ValueError(f"preset must be None or 'official', got {self.preset!r}")
        if self.preset == "official":
            fixed = {"objective": "amopo", "weights": "gaussian", "pooled": "union"}
            for name, default in fixed.items():
                value = getattr(self, name)
                if not isinstance(value, str) or value != default:
                    raise ValueError(f"preset='official' fixes {name}; leave it at its default")
            if self.gamma not in (0.0, OFFICIAL_GAMMA):
                raise ValueError(f"preset='official' fixes gamma={OFFICIAL_GAMMA}, got gamma={self.gamma}")
            if self.normalizer is not None:
                raise ValueError(
                    "preset='official' averages over its own micro-batch and cannot take a normalizer (nor "
                    "token-budget batches); drop the preset, or one of them"
                )


def loss_from_stats(stats: SequenceStats, settings: LossSettings, sample_ids: Tensor | None) -> FusedLoss:
    """The loss from statistics with fields `[B, K, 2]`; `sample_ids` key the noise."""
    batch, num_objectives = stats.sum_logp.shape[:2]
    device = stats.sum_logp.device
    constants = SequenceStats(*(field.detach() for field in stats))
    pooled = "sum" if settings.preset == "official" else settings.pooled
    mu, variance = pool_probabilities(constants.mean_prob, constants.var_prob, constants.length, pooled=pooled)
    sigma = variance.clamp(min=0.0).sqrt()
    weight_stats = WeightStats(
        mu, sigma, constants, _noise_keys(sample_ids, batch, device), settings.seed, _noise_step(settings.step)
    )
    if settings.preset == "official":
        gamma = OFFICIAL_GAMMA
        weights = official_weights(constants, weight_stats.noise()).detach()
        losses = official_losses(margins(stats.sum_logp, stats.length, beta=settings.beta, gamma=gamma), weights)
    else:
        gamma = settings.gamma
        weights = resolve_weights(settings.weights, weight_stats)
        function = settings.objective if callable(settings.objective) else objective_registry.get(settings.objective)
        losses = function(stats.sum_logp, stats.length, weights, beta=settings.beta, gamma=gamma)
    loss_sum = losses.sum()
    return FusedLoss(
        loss=loss_sum / (batch if settings.normalizer is None else settings.normalizer),
        loss_sum=loss_sum,
        num_samples=batch,
        weights=weights,
        sum_logps=stats.sum_logp,
        lengths=constants.length,
        metrics=_metrics(constants, weights, mu, sigma, settings.beta),
    )


def _noise_keys(sample_ids: Tensor | None, batch: int, device: torch.device) -> Tensor:
    if sample_ids is not None:
        if tuple(sample_ids.shape) != (batch,) or sample_ids.dtype != torch.int64:
            raise ValueError(f"sample_ids must be int64 [B={batch}], got {sample_ids.dtype} {tuple(sample_ids.shape)}")
        return sample_ids.to(device, non_blocking=True)
    distributed = torch.distributed.is_available() and torch.distributed.is_initialized()
    rank = torch.distributed.get_rank() if distributed else 0
    return torch.arange(batch, device=device) + (rank << 40)


def _noise_step(step: int | None) -> int | Tensor:
    """A given step, or 64 random bits folded to 32, left on the CPU as a tensor so that nothing waits for it."""
    if step is not None:
        return step
    draw = torch.empty((), dtype=torch.int64).random_(-(2**63), 2**63 - 1)
    return (draw ^ (draw >> 32)) & 0xFFFFFFFF


def _metrics(stats: SequenceStats, weights: Tensor, mu: Tensor, sigma: Tensor, beta: float) -> dict[str, Tensor]:
    with torch.no_grad():
        rewards = beta * stats.sum_logp / stats.length
        margin = rewards[..., 0] - rewards[..., 1]
        entropy = torch.special.entr(weights / weights.sum(-1, keepdim=True)).sum(-1)
        per_sample = {
            "rewards/chosen": rewards[..., 0],
            "rewards/rejected": rewards[..., 1],
            "rewards/margins": margin,
            "rewards/accuracies": (margin > 0).to(margin.dtype),
            "logps/chosen": stats.sum_logp[..., 0],
            "logps/rejected": stats.sum_logp[..., 1],
            "amopo/alpha": weights,
            "amopo/mu": mu,
            "amopo/sigma": sigma,
            "amopo/alpha_entropy": entropy,
        }
        means = {name: value.mean(0) for name, value in per_sample.items()}
        means["amopo/alpha_std"] = weights.std(0, unbiased=False)
        return means
