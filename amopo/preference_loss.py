"""The loss as a function of token log-probs: weights, objective, reduction over samples, metrics.

AMoPO with built-in or given weights is one operator, `amopo_kernels.mobt_op`. Everything else (other objectives, other
sources of weights, the official preset) is a function of per-sequence statistics `[B, K, 2]`, chosen = index 0. Where
objectives have signs, "chosen" is the response that objective k prefers; an objective with sign 0 is absent. What
produces the log-probs (fused head, patched model, another library) is above.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from amopo import objectives as objective_registry
from amopo.objectives.official import GAMMA as OFFICIAL_GAMMA
from amopo.objectives.official import official_losses, official_weights
from amopo.sequence_parallel import same_on_ranks, sequence_stats_over_ranks
from amopo.weights import BUILT_IN, WeightSource, WeightStats, is_built_in, normalised_weights, resolve_weights
from amopo_kernels.mobt import LOGGED, logged_values, margins, pool_probabilities
from amopo_kernels.mobt_op import mobt
from amopo_kernels.segments import SequenceStats, sequence_stats

Objective = str | Callable[..., Tensor]
Weights = str | Tensor | WeightSource

_METRICS = {
    "reward_chosen": "rewards/chosen",
    "reward_rejected": "rewards/rejected",
    "margin": "rewards/margins",
    "accuracy": "rewards/accuracies",
    "logp_chosen": "logps/chosen",
    "logp_rejected": "logps/rejected",
    "weight": "amopo/alpha",
    "mean": "amopo/mu",
    "std": "amopo/sigma",
    "entropy": "amopo/alpha_entropy",
}
_NAMES = tuple(_METRICS[name] for name in LOGGED)


@dataclass(frozen=True)
class FusedLoss:
    """Result of one call; chosen = index 0 of the last dimension.

    loss: 0-dim, `loss_sum / normalizer`. loss_sum: sum over the samples. num_samples: B. weights: `[B, K]`, detached.
    sum_logps: `[B, K, 2]`, differentiable. lengths: `[B, K, 2]` response tokens. metrics: detached means over the
    samples, `[K]` each (`amopo/alpha_entropy` 0-dim). present: bool `[B, K]`, or None where signs leave no objective
    out; an objective's metrics are means over the samples where it is present, NaN where there are none. With signs,
    index 0 is the response that the objective prefers.
    """

    loss: Tensor
    loss_sum: Tensor
    num_samples: int
    weights: Tensor
    sum_logps: Tensor
    lengths: Tensor
    metrics: dict[str, Tensor]
    present: Tensor | None = None


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
    sequence_parallel: Any = None

    def check(self) -> None:
        """Raise ValueError on values that cannot be right, before any work."""
        for name in ("beta", "gamma"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, (int, float)):
                raise TypeError(f"{name} must be a number, got {value!r}")
        if not 0 < self.beta < float("inf"):
            raise ValueError(f"beta must be a positive number, got {self.beta!r}")
        if not abs(self.gamma) < float("inf"):
            raise ValueError(f"gamma must be a finite number, got {self.gamma!r}")
        for name, optional in (("seed", False), ("step", True)):
            value = getattr(self, name)
            if not (optional and value is None) and (isinstance(value, bool) or not isinstance(value, int)):
                raise TypeError(f"{name} must be an integer, got {value!r}")
        if isinstance(self.normalizer, Tensor):
            torch._assert_async((self.normalizer > 0).all(), "normalizer must be positive (samples of the step)")
        elif self.normalizer is not None and not isinstance(self.normalizer, (int, float)):
            raise TypeError(f"normalizer must be a number or a tensor, got {self.normalizer!r}")
        elif self.normalizer is not None and not 0 < self.normalizer < float("inf"):
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
        if self.sequence_parallel is not None and self.step is None:
            raise ValueError(
                "sequence_parallel needs step= (the optimizer step): a step drawn by every rank for itself would give "
                "one sample different weights on the ranks of its group"
            )

    def check_signs(self, signs_given: bool) -> None:
        """Raise ValueError where signs mean nothing."""
        if signs_given and self.preset == "official":
            raise ValueError(
                "preset='official' knows one winner for all objectives, as the released code does; leave signs out "
                "(orientation='overall'), or drop the preset"
            )
        if signs_given and getattr(self.objective, "chosen_first", False):
            raise ValueError(
                "this objective holds numbers of the chosen and rejected responses (dpo: the reference's log-probs), "
                "which signs would pair with the wrong ones; leave signs out (orientation='overall')"
            )


def loss_from_tokens(
    logps: Tensor, offsets: Tensor, sequences: Tensor | None, shape: tuple[int, int], settings: LossSettings,
    sample_ids: Tensor | None, present: Tensor | None = None,
) -> FusedLoss:  # fmt: skip
    """The loss from token log-probs.

    Args:
        logps: `[N]`, sequence after sequence. offsets: int64 `[S + 1]`. sequences: int64 `[B, K, 2]`, which segment
            belongs to which (sample, objective, chosen | rejected); None: they stand in that order. shape: (B, K).
        sample_ids: int64 `[B]`, keys of the noise. present: bool `[B, K]`, which objectives count; None: all do.
    """
    batch, num_objectives = shape
    device = logps.device
    if settings.sequence_parallel is not None and sample_ids is None:
        raise ValueError(
            "sequence_parallel needs sample_ids (int64 [B], the same on all ranks of the group): the noise of a "
            "sample's weights is keyed by them"
        )
    keys, step = _noise_keys(sample_ids, batch, device), _noise_step(settings.step)
    source = _fused_source(settings, shape)
    if source is not None:
        name, given = source
        starts, stops = offsets[:-1], offsets[1:]
        if sequences is not None:
            starts, stops = (edges.index_select(0, sequences.flatten()) for edges in (starts, stops))
        fused = mobt(
            logps.contiguous(),
            starts.reshape(batch, num_objectives, 2),
            stops.reshape(batch, num_objectives, 2),
            weights=name,
            given=None if given is None else normalised_weights(given, shape, logps, present),
            sample_ids=keys,
            seed=settings.seed,
            step=step.to(device, non_blocking=True) if isinstance(step, Tensor) else _filled(step, device),
            beta=settings.beta,
            gamma=settings.gamma,
            pooled=settings.pooled,
            present=present,
        )
        losses, weights, sums, lengths = fused.losses, fused.weights, fused.sums, fused.lengths
        logged = fused.logged
    else:
        if settings.sequence_parallel is None:
            flat = sequence_stats(logps, offsets)
        else:
            flat = sequence_stats_over_ranks(logps, offsets, settings.sequence_parallel)
        if sequences is not None:
            flat = SequenceStats(*(field.index_select(0, sequences.flatten()) for field in flat))
        stats = SequenceStats(*(field.view(batch, num_objectives, 2) for field in flat))
        losses, weights, mu, sigma = _losses_from_stats(stats, settings, keys, step, present)
        sums, lengths = stats.sum_logp, stats.length
        logged = logged_values(sums.detach(), lengths, weights, mu, sigma, settings.beta)
    if tuple(losses.shape) != (batch,):
        raise ValueError(f"the objective must return losses [B={batch}], got shape {tuple(losses.shape)}")
    loss_sum = losses.sum()
    return FusedLoss(
        loss=loss_sum / (batch if settings.normalizer is None else settings.normalizer),
        loss_sum=loss_sum,
        num_samples=batch,
        weights=weights,
        sum_logps=sums,
        lengths=lengths,
        metrics=_metrics(logged, present),
        present=present,
    )


def _fused_source(settings: LossSettings, shape: tuple[int, int]) -> tuple[str, Tensor | None] | None:
    """Where the operator `mobt` computes exactly this loss: its name for the weights, and given ones."""
    amopo_loss = settings.objective == "amopo" and objective_registry.get("amopo") is objective_registry.AMOPO
    if settings.preset is not None or not amopo_loss or settings.sequence_parallel is not None:
        return None
    if isinstance(settings.weights, Tensor):
        return "given", settings.weights
    if isinstance(settings.weights, str) and settings.weights in BUILT_IN and is_built_in(settings.weights):
        return settings.weights, None
    return None


def _filled(step: int, device: torch.device) -> Tensor:
    return torch.full((), step & 0xFFFFFFFF, dtype=torch.int64, device=device)


def _losses_from_stats(
    stats: SequenceStats, settings: LossSettings, keys: Tensor, step: int | Tensor, present: Tensor | None
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """losses `[B]`, weights, mean, std `[B, K]` for the official preset, other objectives, other sources of weights."""
    constants = SequenceStats(*(field.detach() for field in stats))
    pooled = "sum" if settings.preset == "official" else settings.pooled
    mu, variance = pool_probabilities(constants.mean_prob, constants.var_prob, constants.length, pooled=pooled)
    sigma = variance.clamp(min=0.0).sqrt()
    weight_stats = WeightStats(mu, sigma, constants, keys, settings.seed, step, present)
    if settings.preset == "official":
        weights = official_weights(constants, weight_stats.noise()).detach()
        margin = margins(stats.sum_logp, stats.length, beta=settings.beta, gamma=OFFICIAL_GAMMA)
        return official_losses(margin, weights), weights, mu, sigma
    weights = resolve_weights(settings.weights, weight_stats)
    if settings.sequence_parallel is not None:
        weights = same_on_ranks(weights, settings.sequence_parallel)
    function = settings.objective if callable(settings.objective) else objective_registry.get(settings.objective)
    options = {"beta": settings.beta, "gamma": settings.gamma}
    if present is not None:
        _check_takes_present(function)
        options["present"] = present
    return function(stats.sum_logp, stats.length, weights, **options), weights, mu, sigma


def _check_takes_present(objective: Callable[..., Tensor]) -> None:
    parameters = inspect.signature(objective).parameters.values()
    if not any(p.name == "present" or p.kind is inspect.Parameter.VAR_KEYWORD for p in parameters):
        name = getattr(objective, "__name__", repr(objective))
        raise ValueError(
            f"the objective {name} does not know objectives that are absent from a sample (signs of 0); give it a "
            "keyword argument present=None, bool [B, K], or drop the samples with ties"
        )


def _noise_keys(sample_ids: Tensor | None, batch: int, device: torch.device) -> Tensor:
    if sample_ids is not None:
        if not isinstance(sample_ids, Tensor):
            raise TypeError(
                "sample_ids must be an int64 tensor [B]; strings become numbers with amopo.packing.sample_id_to_int64"
            )
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


def _metrics(logged: Tensor, present: Tensor | None) -> dict[str, Tensor]:
    """Means over the samples, from `[B, len(LOGGED), K]`: one launch, then views. Over those present, where not all."""
    if present is None:
        spread, means = torch.std_mean(logged, dim=0, correction=0)
    else:
        there = present[:, None, :]
        counts = there.sum(0).to(logged.dtype)  # 0 / 0 is NaN: no sample, no mean
        means = logged.masked_fill(~there, 0.0).sum(0) / counts
        spread = ((logged - means).masked_fill(~there, 0.0).square().sum(0) / counts).sqrt()
        # the sample's own, the same number for each of its objectives
        means[_NAMES.index("amopo/alpha_entropy")] = logged[:, _NAMES.index("amopo/alpha_entropy")].mean(0)
    metrics = dict(zip(_NAMES, means.unbind(), strict=True))
    metrics["amopo/alpha_entropy"] = metrics["amopo/alpha_entropy"][0]
    metrics["amopo/alpha_std"] = spread[_NAMES.index("amopo/alpha")]
    return metrics
