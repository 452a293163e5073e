"""Objectives: pure functions from per-sequence statistics to per-sample losses, in a registry.

An objective is `f(sum_logps[B, K, 2], lengths[B, K, 2], weights[B, K], *, beta, gamma) -> losses[B]`, chosen = index 0,
differentiable in `sum_logps` alone. Where objectives are absent from samples (signs of 0), their weights are 0, and an
objective that takes `present` (bool `[B, K]`) is given it; one that does not is refused for such batches. Everything
above it (log-probs, packing) and below it (reduction over samples) is the same for all, so a new method is one file
here and one line in the table below.
"""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from amopo.objectives.amopo import amopo
from amopo.objectives.simpo import simpo
from amopo.registry import Registry

Objective = Callable[..., Tensor]

AMOPO = amopo  # the function behind "amopo", unless someone replaces it
_REGISTRY: Registry[Objective] = Registry("objective")
_REGISTRY.register("amopo", amopo)
_REGISTRY.register("simpo", simpo)

list = _REGISTRY.list  # noqa: A001 - the public name of a registry
get = _REGISTRY.get
register = _REGISTRY.register

__all__ = ["Objective", "get", "list", "register"]
