"""Pairs of a better response with a worse one.

    build_pairs(records, objectives=[...], weights=None, strategy="best_worst") -> (list[Pair], PairReport)
    PairMaker(objectives, scales=...).of(record) -> list[Pair]       the same, one record at a time

A response's utility is the weighted mean of its scores, each normalised by its scale to 0..1. The larger utility is
chosen. What the objectives make of that is the orientation:

  "overall"        default, the paper's: one winner for all objectives alike. Equal utilities make no pair.
  "per_objective"  each objective prefers the response that it scores higher: `Pair.signs` holds +1 (the chosen one), -1
                   (the rejected one) or 0 (a tie) by objective. Only responses that tie on every objective make no
                   pair; of two with equal utility the first in the file is called chosen.

Texts that are equal but for space around them make no pair either. The report counts what made none, and the conflicts.
`strategy="best_worst"`: at most one pair per record, the one with the largest difference in utility (per objective:
between equals, the one whose scores differ most). `"all"`: every pair of responses; with `pairs_per_prompt=n` the n
with the largest differences, between equals those that come first in the file. `strict=True`: a record without any
pair raises DataError that names it. No pair at all raises always.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import combinations

from amopo.data.scales import check_objectives, resolve_scales, scales_of
from amopo.data.schema import DataError, Pair, PreferenceRecord, Response, Scale, is_finite_number

STRATEGIES = ("best_worst", "all")
OVERALL, PER_OBJECTIVE = ORIENTATIONS = ("overall", "per_objective")
# Two sums of the same normalised scores in another order differ by about 1e-16; real differences are above 1e-4.
TIE = 1e-9
_DIGITS = 9


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
    ties_by_objective: Mapping[str, int] = field(default_factory=dict)
    """Pairs whose responses score alike on the objective."""
    orientation: str = OVERALL

    def __str__(self) -> str:
        text = (
            f"{self.pairs} pairs from {self.records} prompts; "
            f"skipped {self.ties} ties and {self.identical} with identical texts; "
            f"{self.conflicts} pairs conflict ({_by_name(self.conflicts_by_objective)})"
        )
        if self.orientation == PER_OBJECTIVE:
            text += (
                f", there the objective prefers the other response; ties masked ({_by_name(self.ties_by_objective)})"
            )
        return text


def _by_name(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{name} {count}" for name, count in counts.items())


def build_pairs(
    records: Sequence[PreferenceRecord],
    *,
    objectives: Sequence[str],
    scales: Mapping[str, Scale] | None = None,
    weights: Mapping[str, float] | Sequence[float] | None = None,
    strategy: str = "best_worst",
    pairs_per_prompt: int | None = None,
    orientation: str = OVERALL,
    strict: bool = False,
) -> tuple[list[Pair], PairReport]:
    """Chosen and rejected responses of every record; `scales` default to those the records were read with."""
    objectives = check_objectives(objectives)
    maker = PairMaker(
        objectives,
        scales=resolve_scales(objectives, given=scales, declared=scales_of(records)),
        weights=weights,
        strategy=strategy,
        pairs_per_prompt=pairs_per_prompt,
        orientation=orientation,
        strict=strict,
    )
    pairs = [pair for record in records for pair in maker.of(record)]
    return pairs, maker.final_report()


class PairMaker:
    """Pairs of one record after the other, and a report of all so far; keeps counts, no records."""

    def __init__(
        self,
        objectives: Sequence[str],
        *,
        scales: Mapping[str, Scale],
        weights: Mapping[str, float] | Sequence[float] | None = None,
        strategy: str = "best_worst",
        pairs_per_prompt: int | None = None,
        orientation: str = OVERALL,
        strict: bool = False,
    ) -> None:
        self.objectives = check_objectives(objectives)
        check_choice("strategy", strategy, STRATEGIES)
        check_choice("orientation", orientation, ORIENTATIONS)
        check_pairs_per_prompt(pairs_per_prompt, strategy)
        self.scales = resolve_scales(self.objectives, given=scales)
        self.shares = weight_shares(weights, self.objectives)
        self.strategy, self.orientation, self.strict = strategy, orientation, strict
        self.most = 1 if strategy == "best_worst" else pairs_per_prompt
        self._counts: Counter[str] = Counter()
        self._conflicts: Counter[str] = Counter()
        self._ties: Counter[str] = Counter()

    def of(self, record: PreferenceRecord) -> list[Pair]:
        """The record's pairs, the largest difference first where the strategy chooses among them."""
        compared = self._compare(record)
        decided = compared.decided
        if self.strict and not decided:
            reason = "scores that tie" if compared.ties else "identical texts"
            raise DataError(
                f"{record.label}: its responses have {reason}, so there is no pair; remove it or pass strict=False"
            )
        self._counts["records"] += 1
        if self.strategy == "all":
            self._counts["identical"] += compared.identical
            self._counts["ties"] += compared.ties
        elif not decided:
            self._counts["ties" if compared.ties else "identical"] += 1
        if self.most is not None:
            # sorted() keeps the order of equals, so the order in the file decides.
            decided = sorted(decided, key=lambda found: found.rank)[: self.most]
        return [self._pair(record, found) for found in decided]

    def report(self) -> PairReport:
        """What became of the records so far."""
        counts = self._counts
        return PairReport(
            records=counts["records"],
            pairs=counts["pairs"],
            ties=counts["ties"],
            identical=counts["identical"],
            conflicts=counts["conflicts"],
            conflicts_by_objective={name: self._conflicts[name] for name in self.objectives},
            ties_by_objective={name: self._ties[name] for name in self.objectives},
            orientation=self.orientation,
        )

    def final_report(self) -> PairReport:
        """The report of all records. Raises DataError if there is no pair."""
        report = self.report()
        if not report.pairs:
            per_objective = self.orientation == PER_OBJECTIVE
            needed = "different scores on an objective" if per_objective else "different weighted scores"
            raise DataError(
                f"no pair of responses can be compared ({report}); responses with different texts and {needed} are "
                "needed"
            )
        return report

    def _compare(self, record: PreferenceRecord) -> _Compared:
        """Every two responses of a record."""
        scores = [_normalised(response, self.scales, record) for response in record.responses]
        utilities = [math.fsum(share * row[name] for name, share in self.shares.items()) for row in scores]
        decided, ties, identical = [], 0, 0
        for i, j in combinations(range(len(scores)), 2):
            difference = utilities[i] - utilities[j]
            better, worse = (j, i) if difference < -TIE else (i, j)
            signs = {name: _sign(scores[better][name] - scores[worse][name]) for name in self.objectives}
            is_tie = not any(signs.values()) if self.orientation == PER_OBJECTIVE else abs(difference) <= TIE
            if record.responses[i].text.strip() == record.responses[j].text.strip():
                identical += 1
            elif is_tie:
                ties += 1
            else:
                rank = [-round(abs(difference), _DIGITS)]
                if self.orientation == PER_OBJECTIVE:
                    spread = (share * abs(scores[i][name] - scores[j][name]) for name, share in self.shares.items())
                    rank.append(-round(math.fsum(spread), _DIGITS))
                decided.append(_Decided(tuple(rank), better, worse, signs))
        return _Compared(decided, ties, identical)

    def _pair(self, record: PreferenceRecord, found: _Decided) -> Pair:
        for name, sign in found.signs.items():
            self._conflicts[name] += sign < 0
            self._ties[name] += sign == 0
        self._counts["pairs"] += 1
        self._counts["conflicts"] += any(sign < 0 for sign in found.signs.values())
        pair_id = record.id if self.strategy == "best_worst" else f"{record.id}/{found.better}>{found.worse}"
        signs = found.signs if self.orientation == PER_OBJECTIVE else None
        return Pair(pair_id, record.prompt, record.responses[found.better], record.responses[found.worse], signs)


@dataclass(frozen=True)
class _Decided:
    rank: tuple[float, ...]
    better: int
    worse: int
    signs: Mapping[str, int]


@dataclass(frozen=True)
class _Compared:
    decided: list[_Decided]
    ties: int
    identical: int


def _sign(difference: float) -> int:
    return 0 if abs(difference) <= TIE else 1 if difference > 0 else -1


def check_choice(name: str, value: object, known: Sequence[str]) -> None:
    """Raise ValueError that lists the known values."""
    if value not in known:
        raise ValueError(f"unknown {name} {value!r}; known: {', '.join(known)}")


def check_pairs_per_prompt(pairs_per_prompt: object, strategy: str) -> None:
    """Raise ValueError unless it is None, or a positive integer beside the strategy "all"."""
    if pairs_per_prompt is None:
        return
    if not isinstance(pairs_per_prompt, int) or isinstance(pairs_per_prompt, bool) or pairs_per_prompt < 1:
        raise ValueError(f"pairs_per_prompt must be an integer of at least 1, but is {pairs_per_prompt!r}")
    if strategy != "all":
        raise ValueError(
            f"pairs_per_prompt={pairs_per_prompt} has no meaning with the strategy {strategy!r}, which makes one pair "
            "per prompt; use the strategy 'all'"
        )


def weight_shares(weights: Mapping[str, float] | Sequence[float] | None, objectives: Sequence[str]) -> dict[str, float]:
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


def _normalised(response: Response, scales: Mapping[str, Scale], record: PreferenceRecord) -> dict[str, float]:
    """The response's scores as fractions of their scales."""
    for name, scale in scales.items():
        if name not in response.scores:
            raise DataError(
                f"{record.label}: a response has no score for objective {name!r}; read the file with that objective"
            )
        if response.scores[name] not in scale:
            raise DataError(
                f"{record.label}: the score {response.scores[name]:g} for {name!r} is outside its scale {scale}"
            )
    return {name: scale.normalise(response.scores[name]) for name, scale in scales.items()}
