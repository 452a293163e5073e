"""Pairs of a better response with a worse one.

    build_pairs(records, objectives=[...], weights=None, strategy="best_worst") -> (list[Pair], PairReport)

A response's utility is the weighted mean of its scores, each normalised by its scale to 0..1. The larger utility is
chosen, for all objectives alike (one overall winner). Equal utilities make no pair, nor do texts that are equal but for
space around them; the report counts them, and the conflicts. `strategy="best_worst"`: at most one pair per record, the
one with the largest difference. `"all"`: every pair of responses. `strict=True`: a record without any pair raises
DataError that names it. No pair at all raises always.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations

from amopo.data.scales import check_objectives, resolve_scales, scales_of
from amopo.data.schema import DataError, Pair, PreferenceRecord, Response, Scale, is_finite_number

STRATEGIES = ("best_worst", "all")
# Two sums of the same normalised scores in another order differ by about 1e-16; real differences are above 1e-4.
TIE = 1e-9


@dataclass(frozen=True)
class PairReport:
    """What became of the records. Counts are in records for "best_worst", in pairs of responses for "all"."""

    records: int
    pairs: int
    ties: int
    identical: int
    conflicts: int
    """Pairs where at least one objective scores the rejected response higher."""
    conflicts_by_objective: Mapping[str, int]

    def __str__(self) -> str:
        by_objective = ", ".join(f"{name} {count}" for name, count in self.conflicts_by_objective.items())
        return (
            f"{self.pairs} pairs from {self.records} prompts; "
            f"skipped {self.ties} ties and {self.identical} with identical texts; "
            f"{self.conflicts} pairs conflict ({by_objective})"
        )


def build_pairs(
    records: Sequence[PreferenceRecord],
    *,
    objectives: Sequence[str],
    scales: Mapping[str, Scale] | None = None,
    weights: Mapping[str, float] | Sequence[float] | None = None,
    strategy: str = "best_worst",
    strict: bool = False,
) -> tuple[list[Pair], PairReport]:
    """Chosen and rejected responses of every record; `scales` default to those the records were read with."""
    objectives = check_objectives(objectives)
    if strategy not in STRATEGIES:
        raise ValueError(f"unknown strategy {strategy!r}; known: {', '.join(STRATEGIES)}")
    scales = resolve_scales(objectives, given=scales, declared=scales_of(records))
    shares = _shares(weights, objectives)
    pairs: list[Pair] = []
    ties = identical = 0
    for record in records:
        compared = _compare(record, [_utility(response, scales, shares, record) for response in record.responses])
        decided = compared.decided
        if strict and not decided:
            reason = "scores that tie" if compared.ties else "identical texts"
            raise DataError(
                f"{record.label}: its responses have {reason}, so there is no pair; remove it or pass strict=False"
            )
        if strategy == "all":
            identical += compared.identical
            ties += compared.ties
            pairs += [_pair(record, w, l, f"{record.id}/{w}>{l}") for _, w, l in decided]
        elif decided:
            # max() keeps the first of equals, so the order in the file decides.
            _, w, l = max(decided, key=lambda found: found[0])
            pairs.append(_pair(record, w, l, record.id))
        else:
            ties += compared.ties > 0
            identical += compared.ties == 0
    by_objective = {name: sum(_prefers_rejected(pair, name) for pair in pairs) for name in objectives}
    conflicts = sum(any(_prefers_rejected(pair, name) for name in objectives) for pair in pairs)
    report = PairReport(len(records), len(pairs), ties, identical, conflicts, by_objective)
    if not pairs:
        raise DataError(
            f"no pair of responses can be compared ({report}); responses with different texts and "
            "different weighted scores are needed"
        )
    return pairs, report


@dataclass(frozen=True)
class _Compared:
    decided: list[tuple[float, int, int]]
    """(difference in utility, index of the better response, index of the worse)."""
    ties: int
    identical: int


def _compare(record: PreferenceRecord, utilities: Sequence[float]) -> _Compared:
    """Every two responses of a record."""
    decided, ties, identical = [], 0, 0
    for i, j in combinations(range(len(utilities)), 2):
        difference = utilities[i] - utilities[j]
        if record.responses[i].text.strip() == record.responses[j].text.strip():
            identical += 1
        elif abs(difference) <= TIE:
            ties += 1
        else:
            decided.append((difference, i, j) if difference > 0 else (-difference, j, i))
    return _Compared(decided, ties, identical)


def _pair(record: PreferenceRecord, winner: int, loser: int, pair_id: int | str) -> Pair:
    return Pair(pair_id, record.prompt, record.responses[winner], record.responses[loser])


def _shares(weights: Mapping[str, float] | Sequence[float] | None, objectives: Sequence[str]) -> dict[str, float]:
    """Weights that sum to one, by objective."""
    if weights is None:
        weights = dict.fromkeys(objectives, 1.0)
    elif not isinstance(weights, Mapping):
        if len(weights) != len(objectives):
            raise ValueError(
                f"weights has {len(weights)} numbers for {len(objectives)} objectives; give one per objective"
            )
        weights = dict(zip(objectives, weights, strict=True))
    if set(weights) != set(objectives):
        raise ValueError(
            f"weights are for {', '.join(weights)}, objectives are {', '.join(objectives)}; they must be the same"
        )
    for name, weight in weights.items():
        if not is_finite_number(weight) or weight < 0:
            raise ValueError(f"the weight of objective {name!r} is {weight!r}; a finite number >= 0 is needed")
    total = math.fsum(weights.values())
    if total <= 0:
        raise ValueError("all weights are 0; at least one objective needs a weight above 0")
    return {name: weights[name] / total for name in objectives}


def _utility(
    response: Response, scales: Mapping[str, Scale], shares: Mapping[str, float], record: PreferenceRecord
) -> float:
    for name, scale in scales.items():
        if name not in response.scores:
            raise DataError(
                f"{record.label}: a response has no score for objective {name!r}; read the file with that objective"
            )
        if response.scores[name] not in scale:
            raise DataError(
                f"{record.label}: the score {response.scores[name]:g} for {name!r} is outside its scale {scale}"
            )
    return math.fsum(share * scales[name].normalise(response.scores[name]) for name, share in shares.items())


def _prefers_rejected(pair: Pair, objective: str) -> bool:
    return pair.rejected.scores[objective] > pair.chosen.scores[objective]
