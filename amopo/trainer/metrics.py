"""Metrics of a run, summed on the device until they are logged.

Contract
--------
`MetricSums.add(result, layout)` takes the `FusedLoss` and the layout of one micro-batch. Every metric is a mean over
that call's samples; it is added weighted by their number, so that what `reduce()` returns are exact means over all
samples since the last call, whatever the batches were. Where signs leave objectives out of samples, an objective's
metrics are means over the samples where it is present; NaN if there were none. `add` waits for nothing; `reduce` makes
one all-reduce of one vector and one copy to the host.

Names, for objective d: `rewards/{chosen,rejected,margins,accuracies}` and `logps/{chosen,rejected}`, each as the mean
over objectives and per objective (`rewards/margins/<d>`); `amopo/alpha/<d>`, `amopo/alpha_std/<d>` (over samples),
`amopo/mu/<d>`, `amopo/sigma/<d>`; `amopo/alpha_entropy`. Rewards are beta times the mean log-prob per token. "Chosen"
is the response that objective d prefers. Means over objectives leave out those that no sample has.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from amopo.packing.layout import TreeLayout
from amopo.preference_loss import FusedLoss

# The std over samples cannot be averaged over batches; it follows from the sums of alpha and alpha squared.
_ALPHA, _ALPHA_STD, _ALPHA_SQUARED = "amopo/alpha", "amopo/alpha_std", "alpha squared"
_ENTROPY = "amopo/alpha_entropy"  # one number per sample, not one per objective
_MEANS_OVER_OBJECTIVES = ("rewards/", "logps/")


@dataclass(frozen=True)
class Totals:
    """What a logging interval amounts to, over all ranks."""

    means: dict[str, float]
    loss: float
    num_samples: int
    num_tokens: int  # in the rows
    represented_tokens: int  # of all sequences, written out
    num_batches: int


class MetricSums:
    """Sums of metrics over the samples of several micro-batches, one vector on the device."""

    def __init__(self, objectives: Sequence[str]) -> None:
        self.objectives = list(objectives)
        self._names: list[str] = []
        self._sums: Tensor | None = None
        self._counts = [0, 0, 0]

    @property
    def is_empty(self) -> bool:
        """Nothing was added since the last `reduce`."""
        return self._sums is None

    @torch.no_grad()
    def add(self, result: FusedLoss, layout: TreeLayout, *, num_samples: int | None = None) -> None:
        """Add one micro-batch; `num_samples=0` marks a filler, which only keeps the ranks' vectors alike."""
        count = result.num_samples if num_samples is None else num_samples
        metrics = {name: value for name, value in result.metrics.items() if name != _ALPHA_STD}
        # in fp64, since the two sums are subtracted in the end; absent objectives have weight 0
        weights, present = result.weights.double(), result.present
        if present is None:
            counts = weights.new_full((weights.shape[1],), result.num_samples)
        else:
            counts = present.sum(0).double()
        metrics[_ALPHA] = weights.sum(0) / counts
        metrics[_ALPHA_SQUARED] = weights.square().sum(0) / counts
        self._names = list(metrics)
        parts = []
        for name, value in metrics.items():
            if name == _ENTROPY:
                parts.append(value.reshape(1).double() * result.num_samples)
            elif present is None:
                parts.append(value.double() * counts)
            else:
                parts.append(torch.where(counts > 0, value.double() * counts, 0.0))
        loss = result.loss_sum.detach().reshape(1).double()
        sums = torch.cat([*parts, counts, loss, loss.new_full((1,), count)])
        if count == 0:
            sums = torch.zeros_like(sums)
        else:
            batch = (layout.num_tokens, layout.represented_tokens, 1)
            self._counts = [count + more for count, more in zip(self._counts, batch, strict=True)]
        self._sums = sums if self._sums is None else self._sums + sums

    def reduce(self, all_reduce: Callable[[Tensor], Tensor] | None = None) -> Totals:
        """Means over all samples added, on every rank alike; starts over."""
        if self._sums is None:
            raise ValueError("no batch was added since the last reduce; there is nothing to average")
        counts = torch.tensor(self._counts, dtype=self._sums.dtype)
        vector = torch.cat([self._sums, counts.to(self._sums.device, non_blocking=True)])
        if all_reduce is not None:
            vector = all_reduce(vector)
        values = vector.tolist()
        *sums, loss, count, tokens, represented, batches = values
        self._sums, self._counts = None, [0, 0, 0]
        num_objectives = len(self.objectives)
        means = self._named(sums[:-num_objectives], sums[-num_objectives:], count)
        return Totals(means, loss / count, round(count), round(tokens), round(represented), round(batches))

    def _named(self, sums: list[float], counts: list[float], num_samples: float) -> dict[str, float]:
        """Means by name. counts: samples in which each objective is present."""
        columns: dict[str, list[float]] = {}
        position = 0
        for name in self._names:
            divisors = [num_samples] if name == _ENTROPY else counts
            values = sums[position : position + len(divisors)]
            columns[name] = [value / n if n else math.nan for value, n in zip(values, divisors, strict=True)]
            position += len(divisors)
        squares = columns.pop(_ALPHA_SQUARED)
        columns[_ALPHA_STD] = [
            math.sqrt(max(0.0, square - mean**2)) if math.isfinite(square) else math.nan
            for square, mean in zip(squares, columns[_ALPHA], strict=True)
        ]
        named: dict[str, float] = {}
        for name, column in columns.items():
            if name == _ENTROPY:
                named[name] = column[0]
                continue
            if name.startswith(_MEANS_OVER_OBJECTIVES):
                seen = [value for value, n in zip(column, counts, strict=True) if n]
                named[name] = sum(seen) / len(seen) if seen else math.nan
            for objective, value in zip(self.objectives, column, strict=True):
                named[f"{name}/{objective}"] = value
        return named


class Stopwatch:
    """Wall time between two readings, without the stretches between `pause` and `resume`."""

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        """Stand still until `start`."""
        self._started: float | None = None
        self._paused: float | None = None
        self._excluded = 0.0

    def start(self) -> None:
        """Begin to measure, if not begun."""
        if self._started is None:
            self._started = time.perf_counter()

    def pause(self) -> None:
        """Leave out the time until `resume`."""
        if self._started is not None and self._paused is None:
            self._paused = time.perf_counter()

    def resume(self) -> None:
        """Measure again."""
        if self._paused is not None:
            self._excluded += time.perf_counter() - self._paused
            self._paused = None

    def read(self) -> float:
        """Seconds since the last reading; starts over."""
        now = time.perf_counter()
        elapsed = now - (self._started if self._started is not None else now) - self._excluded
        self._started, self._excluded = now, 0.0
        return elapsed
