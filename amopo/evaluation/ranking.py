"""How log-probs rank the scored responses of a prompt.

Contract
--------
`Ranked(scores, utilities, logps)` is one prompt with n responses: `scores[objective][i]`, the utility that decides who
wins overall, and per variant of the prompt one mean log-prob per response.

    overall(variant, conflicting)    (right, pairs): pairs where the overall winner has the larger log-prob
    own(objective, conflicting)      (right, pairs): asked for this objective, pairs where the response that is better
                                     in it has the larger log-prob
    margin(variant)                  mean over all pairs of the overall winner's log-prob less the loser's
    best(variant)                    the scores of the response with the largest log-prob, by objective

A pair counts if its utilities differ (`overall`) or its scores on the objective differ (`own`). It conflicts if its
utilities differ and at least one objective scores the overall loser higher. Equal log-probs are half right.
`oracle` and `random` are the bounds for `best`: the largest score that any response has, and the mean of all.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations

TIE = 1e-9  # two sums of the same scores in another order differ by about 1e-16


@dataclass(frozen=True)
class Ranked:
    scores: Mapping[str, Sequence[float]]
    utilities: Sequence[float]
    logps: Mapping[str, Sequence[float]]

    def overall(self, variant: str, *, conflicting: bool = False) -> tuple[float, int]:
        logps = self.logps[variant]
        pairs = [
            (winner, loser)
            for winner, loser in self._decided(self.utilities)
            if not conflicting or self._conflicts(winner, loser)
        ]
        return sum(_right(logps[w], logps[l]) for w, l in pairs), len(pairs)

    def own(self, objective: str, *, conflicting: bool = False) -> tuple[float, int]:
        logps = self.logps[objective]
        pairs = [
            (better, worse)
            for better, worse in self._decided(self.scores[objective])
            if not conflicting or self._conflicts(better, worse)
        ]
        return sum(_right(logps[b], logps[w]) for b, w in pairs), len(pairs)

    def margin(self, variant: str) -> float:
        """NaN where no two utilities differ."""
        logps = self.logps[variant]
        differences = [logps[winner] - logps[loser] for winner, loser in self._decided(self.utilities)]
        return sum(differences) / len(differences) if differences else math.nan

    def best(self, variant: str) -> dict[str, float]:
        logps = self.logps[variant]
        first = max(range(len(logps)), key=lambda index: logps[index])
        return {name: scores[first] for name, scores in self.scores.items()}

    def oracle(self, objective: str | None = None) -> float:
        """The best that one response reaches on the objective; None: on the mean of all objectives."""
        return max(self._values(objective))

    def random(self, objective: str | None = None) -> float:
        values = self._values(objective)
        return sum(values) / len(values)

    def _values(self, objective: str | None) -> Sequence[float]:
        if objective is not None:
            return self.scores[objective]
        return [sum(column) / len(column) for column in zip(*self.scores.values(), strict=True)]

    def _decided(self, values: Sequence[float]) -> Iterator[tuple[int, int]]:
        """(larger, smaller) of every two that differ."""
        for i, j in combinations(range(len(values)), 2):
            if abs(values[i] - values[j]) > TIE:
                yield (i, j) if values[i] > values[j] else (j, i)

    def _conflicts(self, i: int, j: int) -> bool:
        difference = self.utilities[i] - self.utilities[j]
        if abs(difference) <= TIE:
            return False
        winner, loser = (i, j) if difference > 0 else (j, i)
        return any(scores[loser] - scores[winner] > TIE for scores in self.scores.values())


def _right(better: float, worse: float) -> float:
    return 0.5 if better == worse else float(better > worse)
