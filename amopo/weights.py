"""Where the weights alpha of the K objectives come from.

A source is a function of `WeightStats` that returns `[B, K]`. Registered: "gaussian" (the paper's: a draw from the mean
and variance of the token probabilities, softmax over the K objectives of one sample), "mean" (the same without the
draw) and "uniform". `fused_loss(weights=...)` also takes a tensor `[K]` or `[B, K]` (fixed weights, normalised to sum
1 per sample) and any function `(WeightStats) -> [B, K]`. Weights never carry gradients.

The draw is counter-based: keyed by (seed, step, sample id, objective), so it does not depend on batching, packing,
rank or resume. Alone it is mostly noise: with a token-probability std around 0.3 the adaptive part of alpha is about
0.02 and the draw's std about 0.1. That is why "mean" and "uniform" stand beside it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from amopo.registry import Registry
from amopo_kernels.mobt import softmax_weights, uniform_weights
from amopo_kernels.philox import gaussian_noise
from amopo_kernels.segments import SequenceStats


class WeightStats(NamedTuple):
    """What a source of weights may look at: pooled mean and std of token probabilities, and what they came from.

    mean, std: `[B, K]` over both responses (Eq. 10). sequences: fields `[B, K, 2]`, detached. sample_ids: int64 `[B]`.
    seed: of the noise. step: 0-dim int64 tensor on the CPU, or an int. present: bool `[B, K]`, which objectives prefer
    one of the sample's responses at all; None: all do. What a source returns for the others is set to 0.
    """

    mean: Tensor
    std: Tensor
    sequences: SequenceStats
    sample_ids: Tensor
    seed: int
    step: int | Tensor
    present: Tensor | None = None

    def noise(self) -> Tensor:
        """Standard normals `[B, K, 2]` of these samples at this step; the first of each pair is the paper's draw."""
        return gaussian_noise(self.sample_ids, self.mean.shape[1], seed=self.seed, step=self.step)


WeightSource = Callable[[WeightStats], Tensor]

_REGISTRY: Registry[WeightSource] = Registry("source of weights")
list = _REGISTRY.list  # noqa: A001 - the public name of a registry
get = _REGISTRY.get
register = _REGISTRY.register


@register("gaussian")
def gaussian(stats: WeightStats) -> Tensor:
    """`alpha = softmax_k(mu_k + sigma_k * eps_k)`, one normal draw per (sample, objective) (Eq. 10)."""
    noise = stats.noise()[..., 0].to(stats.mean.dtype)
    return softmax_weights(stats.mean + stats.std * noise, stats.present)


@register("mean")
def mean(stats: WeightStats) -> Tensor:
    """`alpha = softmax_k(mu_k)`: the paper's weights without the draw."""
    return softmax_weights(stats.mean, stats.present)


@register("uniform")
def uniform(stats: WeightStats) -> Tensor:
    """`alpha = 1 / K`."""
    return uniform_weights(stats.mean, stats.present)


BUILT_IN = {"gaussian": gaussian, "mean": mean, "uniform": uniform}


def is_built_in(name: str) -> bool:
    """Whether `name` still means the source defined here."""
    return name in BUILT_IN and get(name) is BUILT_IN[name]


def resolve_weights(weights: str | Tensor | WeightSource, stats: WeightStats) -> Tensor:
    """Weights `[B, K]` of a named source, a tensor or a function, normalised as by `normalised_weights`."""
    source = get(weights) if isinstance(weights, str) else weights
    given = source(stats) if callable(source) and not isinstance(source, Tensor) else source
    return normalised_weights(given, tuple(stats.mean.shape), stats.mean, stats.present)


def normalised_weights(given: Tensor, shape: tuple[int, int], like: Tensor, present: Tensor | None = None) -> Tensor:
    """Weights `[B, K]` in dtype and on the device of `like`: detached, each row summing to 1.

    With `present` (bool `[B, K]`) the weights of absent objectives are 0 and the others sum to 1; a sample whose
    weighted objectives are all absent has no weight at all, and adds nothing to the loss.

    Raises:
        ValueError: no tensor, or of the wrong shape.
        RuntimeError: values that are negative, not finite, or all zero for a sample (on CUDA a device assertion, so
        that the host need not wait).
    """
    if not isinstance(given, Tensor):
        raise ValueError(
            "weights must be a name, a tensor [K] or [B, K], or a function (WeightStats) -> tensor; "
            f"got {type(given).__name__}"
        )
    if given.dim() not in (1, 2) or given.shape[-1] != shape[1] or (given.dim() == 2 and given.shape[0] != shape[0]):
        raise ValueError(f"weights must be [K={shape[1]}] or [B={shape[0]}, K={shape[1]}], got {tuple(given.shape)}")
    given = given.detach().to(device=like.device, dtype=like.dtype, non_blocking=True).expand(shape)
    total = given.sum(-1, keepdim=True)
    # NaN and inf fail the comparisons: a finite positive total of non-negative numbers has only finite terms.
    valid = (given >= 0).all() & (total > 0).all() & torch.isfinite(total).all()
    torch._assert_async(valid, "weights must be finite and not negative, with a positive sum for every sample")
    if present is None:
        return given / total
    given = given.masked_fill(~present, 0.0)
    total = given.sum(-1, keepdim=True)
    return given / torch.where(total > 0, total, 1.0)
