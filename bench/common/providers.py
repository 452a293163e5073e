"""The registry of what is compared; `baselines`, `ours` and `peers` fill it.

A provider says for a case and a frozen flag which function is timed: forward and backward of a head, from leaves to
gradients. All get the same compacted rows, the same dtype, the same frozen flag. Three tasks differ in what a library
can take:

| task | forward | upstream gradient | compared value |
|---|---|---|---|
| tokens | log-prob per row | any, one number per row (`case.upstream`) | log-probs |
| pairs | SimPO's loss of sequences (chosen, rejected, chosen, ...) | its own | mean log-prob per sequence |
| mean | mean cross-entropy | one number | the loss |

"products" has no task: the bare matrix products, which everything else contains.
"""

from __future__ import annotations

import contextlib
import importlib.util
import math
import os
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from amopo_kernels import backend
from amopo_kernels.products import cpu_has_native
from bench.common.cases import HeadCase
from bench.common.truth import Truth, gradient_errors

ROLES = ("floor", "ours", "peer", "bound", "scale")
SIMPO = {"beta": 2.0, "gamma": 0.5}


@dataclass
class Outcome:
    """What one call returned: the compared value (see the table) and the gradients."""

    value: Tensor | None
    grad_hidden: Tensor | None = None
    grad_weight: Tensor | None = None


class NotMeasured(Exception):
    """Raised by a provider's `build`: the reason why this case says nothing about it."""


Build = Callable[[HeadCase, bool], Callable[[], Outcome]]


@dataclass(frozen=True)
class Provider:
    """One line of a comparison.

    role: "floor"; "ours"; "peer" (the same task, to be beaten); "bound" (solves an easier task); "scale" (known to be
    slow or inexact, there to give the others a scale). `missing(case)` is the reason why it cannot run, or None.
    """

    name: str
    role: str
    task: str
    settings: str
    missing: Callable[[HeadCase], str | None]
    build: Build
    compiled: bool = False  # by torch.compile: a dispatch-mode watch would change what runs
    details: Callable[[HeadCase, bool], dict] = lambda case, frozen: {}  # numbers of its settings, e.g. budget_bytes

    def products(self, frozen: bool) -> int:
        """Matrix products that the task needs: logits, dH and, unless frozen, dW."""
        return 2 if frozen else 3


PROVIDERS: dict[str, Provider] = {}


def register(
    name: str,
    role: str,
    task: str,
    settings: str,
    missing: Callable[[HeadCase], str | None] = lambda case: None,
    *,
    compiled: bool = False,
    details: Callable[[HeadCase, bool], dict] = lambda case, frozen: {},
) -> Callable[[Build], Build]:
    if name in PROVIDERS or role not in ROLES:
        raise ValueError(f"provider {name!r} is registered twice, or its role {role!r} is not one of {ROLES}")

    def keep(build: Build) -> Build:
        PROVIDERS[name] = Provider(name, role, task, settings, missing, build, compiled, details)
        return build

    return keep


def upstream_of(task: str, case: HeadCase, logps: Tensor) -> Tensor:
    """fp64 `[N]`: the gradient of the task's loss with respect to each row's log-prob, given the true log-probs."""
    if task == "tokens":
        return case.upstream.double()
    if task == "mean":
        return torch.full_like(logps, -1.0 / logps.shape[0])
    means = logps.view(case.sequences, case.length).mean(1)
    margin = SIMPO["beta"] * (means[0::2] - means[1::2]) - SIMPO["gamma"]
    slope = SIMPO["beta"] * torch.sigmoid(-margin) / margin.shape[0] / case.length
    return torch.stack([-slope, slope], 1).flatten().repeat_interleave(case.length)


def errors_of(task: str, case: HeadCase, truth: Truth, outcome: Outcome) -> dict[str, float]:
    """Errors of an outcome against fp64: of the compared value (largest, absolute), of dH and dW (relative)."""
    if outcome.value is None:
        return {}
    exact = {
        "tokens": lambda: truth.logps,
        "pairs": lambda: truth.logps.view(case.sequences, case.length).mean(1),
        "mean": lambda: -truth.logps.mean(),
    }[task]()
    value = outcome.value.detach().double()
    error = float((value - exact).abs().max()) if bool(torch.isfinite(value).all()) else math.nan
    upstream = upstream_of(task, case, truth.logps)
    return {"logp_error": error, **gradient_errors(truth, upstream, outcome.grad_hidden, outcome.grad_weight)}


def tokens_task(op: Callable[[Tensor, Tensor], Tensor], case: HeadCase, frozen: bool) -> Callable[[], Outcome]:
    """Forward to log-probs, backward from the case's upstream gradient."""

    def run() -> Outcome:
        hidden, weight = case.leaves(frozen)
        logps = op(hidden, weight)
        leaves = (hidden,) if frozen else (hidden, weight)
        grads = torch.autograd.grad(logps, leaves, case.upstream.to(logps.dtype))
        return Outcome(logps.detach(), *grads)

    return run


def scalar_task(
    op: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]], case: HeadCase, frozen: bool
) -> Callable[[], Outcome]:
    """Forward to (loss, compared value), backward from the loss."""

    def run() -> Outcome:
        hidden, weight = case.leaves(frozen)
        loss, value = op(hidden, weight)
        return Outcome(value.detach(), *torch.autograd.grad(loss, (hidden,) if frozen else (hidden, weight)))

    return run


# What runs where ------------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def using_backend(name: str) -> Iterator[None]:
    before = os.environ.get("AMOPO_BACKEND")
    os.environ["AMOPO_BACKEND"] = name
    try:
        yield
    finally:
        os.environ.pop("AMOPO_BACKEND")
        if before is not None:
            os.environ["AMOPO_BACKEND"] = before


def backend_missing(name: str, device: torch.device) -> str | None:
    """Why this backend of amopo is not measured here, or None."""
    if name == "eager":
        return None
    there, reason = {"triton": backend.triton_available, "cpp": backend.cpp_available}[name](device.type)
    if there and name == "triton" and device.type != "cuda":
        return "Triton's interpreter says nothing about speed"
    return None if there else reason


def fp32_is_no_gain(case: HeadCase) -> str | None:
    """Why fp32 products are not measured too; None on CPUs without units for the tested dtype."""
    if case.device.type != "cpu" or case.dtype == torch.float32:
        return "the tested dtype has units of its own here, or is fp32"
    return "this CPU has units for the tested dtype" if cpu_has_native(case.dtype) else None


def compiler_missing(device: torch.device) -> str | None:
    """Why torch.compile cannot make code for this device, or None."""
    if device.type == "cuda":
        return None if importlib.util.find_spec("triton") else "torch.compile needs triton on CUDA"
    compiler = os.environ.get("CXX", "g++")
    return None if shutil.which(compiler) else f"torch.compile needs a C++ compiler ({compiler} is not there)"
