"""How sure a mean is: over seeds, and over prompts.

Contract
--------
`t_interval(values)` -> (low, high) of the mean of independent runs, by Student's t with n - 1 degrees of freedom; None
for fewer than two values, and where one of them is no number.

`Resamples(sizes, count=2000, seed=0)` is a bootstrap over prompts: `sizes[s]` prompts were measured with seed s, and
every resample draws that many of them again, with replacement, within each seed. The same object gives every quantity
the same resamples, so a difference or a ratio of two of its tables is a paired comparison, prompt by prompt:

    means(values)           [1 + count, seeds]: mean over prompts; row 0 is the sample itself, the others resamples
    ratios(tops, bottoms)   the same of sum(tops) / sum(bottoms), right pairs over pairs; NaN where there is none

`estimate(table)` reads such a table: the mean over seeds, each seed's value, the t interval over seeds (what another
training run would give) and the percentile interval of the bootstrap (what other prompts would give these models).
Everything is fp64 and a pure function of its arguments. Memory: `8 * (1 + count) * sum(sizes)` bytes.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

LEVEL = 0.95


def t_quantile(level: float, degrees: int) -> float:
    """The t with P(|T| < t) = level, for Student's distribution with so many degrees of freedom."""
    if not 0 < level < 1:
        raise ValueError(f"level must lie between 0 and 1, not {level}")
    if degrees < 1:
        raise ValueError(f"degrees of freedom must be at least 1, not {degrees}")
    low, high = 0.0, math.pi / 2
    for _ in range(200):
        middle = (low + high) / 2
        low, high = (middle, high) if _central_mass(middle, degrees) < level else (low, middle)
    return math.sqrt(degrees) * math.tan((low + high) / 2)


def _central_mass(theta: float, degrees: int) -> float:
    """P(|T| < sqrt(degrees) tan(theta)), a finite sum for whole degrees (Abramowitz and Stegun, 26.7.3 and 26.7.4)."""
    sine, cosine = math.sin(theta), math.cos(theta)
    odd = degrees % 2
    term = cosine if odd else 1.0
    total = term if degrees > 1 else 0.0
    for k in range(3 if odd else 2, degrees - 1, 2):
        term *= cosine**2 * (k - 1) / k
        total += term
    return 2 / math.pi * (theta + sine * total) if odd else sine * total


def t_interval(values: Sequence[float], *, level: float = LEVEL) -> tuple[float, float] | None:
    """Where the mean of such values lies, if they are independent and about normal."""
    n = len(values)
    if n < 2 or not all(map(math.isfinite, values)):
        return None
    mean = math.fsum(values) / n
    variance = math.fsum((value - mean) ** 2 for value in values) / (n - 1)
    half = t_quantile(level, n - 1) * math.sqrt(variance / n)
    return mean - half, mean + half


class Resamples:
    """The same bootstrap resamples of prompts for every quantity measured on them."""

    def __init__(self, sizes: Sequence[int], *, count: int = 2000, seed: int = 0) -> None:
        if not sizes or min(sizes) < 1:
            raise ValueError(f"sizes must name at least one prompt for every seed, got {list(sizes)}")
        generator = torch.Generator().manual_seed(seed)
        self._counts: list[Tensor] = []
        for size in sizes:
            drawn = torch.randint(size, (count, size), generator=generator)
            counts = torch.zeros(1 + count, size, dtype=torch.float64)
            counts[0] = 1.0
            counts[1:].scatter_add_(1, drawn, torch.ones(count, size, dtype=torch.float64))
            self._counts.append(counts)

    def sums(self, values: Sequence[Sequence[float]]) -> Tensor:
        """[1 + count, seeds]: sum over prompts; `values[s]` has one number per prompt of seed s."""
        if len(values) != len(self._counts):
            raise ValueError(f"values of {len(values)} seeds were given, the resamples are of {len(self._counts)}")
        columns = []
        for index, (given, counts) in enumerate(zip(values, self._counts, strict=True)):
            if len(given) != counts.shape[1]:
                raise ValueError(
                    f"seed number {index} has {len(given)} values, the resamples are of {counts.shape[1]} prompts"
                )
            columns.append(counts @ torch.tensor(list(given), dtype=torch.float64))
        return torch.stack(columns, dim=1)

    def means(self, values: Sequence[Sequence[float]]) -> Tensor:
        sizes = torch.tensor([counts.shape[1] for counts in self._counts], dtype=torch.float64)
        return self.sums(values) / sizes

    def ratios(self, tops: Sequence[Sequence[float]], bottoms: Sequence[Sequence[float]]) -> Tensor:
        return self.sums(tops) / self.sums(bottoms)


@dataclass(frozen=True)
class Estimate:
    mean: float
    per_seed: tuple[float, ...]
    over_seeds: tuple[float, float] | None
    """t interval; None with one seed."""
    over_prompts: tuple[float, float]
    """Percentile interval of the bootstrap over prompts, the seeds held fixed."""


def estimate(table: Tensor, *, level: float = LEVEL) -> Estimate:
    """What a table `[1 + count, seeds]` of `Resamples` says about the mean over seeds."""
    per_seed = tuple(table[0].tolist())
    tail = (1 - level) / 2
    # A resample may hold none of a few rare pairs, which has no ratio; it is left out.
    ends = torch.nanquantile(table[1:].mean(1), torch.tensor([tail, 1 - tail], dtype=torch.float64)).tolist()
    return Estimate(
        mean=float(table[0].mean()),
        per_seed=per_seed,
        over_seeds=t_interval(per_seed, level=level),
        over_prompts=(ends[0], ends[1]),
    )
