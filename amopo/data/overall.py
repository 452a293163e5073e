"""An objective for overall quality, made of the others.

    records = add_overall(records, objectives=["helpfulness", "correctness"], scales=..., weights=None)
    OverallScore(objectives, scales=..., weights=None).of(record)      the same, one record at a time
    objectives = ["overall", "helpfulness", "correctness"]
    build_pairs(records, objectives=objectives, weights=overall_weights(objectives))

Each response gets a score "overall": the weighted mean of its scores, each normalised by its scale, on `OVERALL_SCALE`,
0 to 4. It stands first and decides who is chosen, as the prompt without a named dimension does in the released AMoPO
preprocessing. Responses that have a score of that name already are refused: it may be another one.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

from amopo.data.pairs import weight_shares
from amopo.data.scales import check_objectives
from amopo.data.schema import DataError, PreferenceRecord, Response, Scale

OVERALL_NAME = "overall"
OVERALL_SCALE = Scale(0, 4)
_DIGITS = 9  # sums in another order differ beyond these


def with_overall(objectives: Sequence[str]) -> list[str]:
    """The objectives with "overall" before them."""
    objectives = list(check_objectives(objectives))
    if OVERALL_NAME in objectives:
        raise ValueError(
            f"the objective {OVERALL_NAME!r} is made of the others and cannot be one of them; leave it out of the "
            "objectives, or do not ask for it"
        )
    return [OVERALL_NAME, *objectives]


def overall_weights(objectives: Sequence[str]) -> dict[str, float]:
    """Weights of the scores with which "overall", which holds the others already, decides who is chosen."""
    return {name: float(name == OVERALL_NAME) for name in objectives}


def add_overall(
    records: Iterable[PreferenceRecord],
    *,
    objectives: Sequence[str],
    scales: Mapping[str, Scale],
    weights: Mapping[str, float] | Sequence[float] | None = None,
) -> list[PreferenceRecord]:
    """Records whose responses have a score "overall"; `objectives`, `weights` are those that it is made of."""
    overall = OverallScore(objectives, scales=scales, weights=weights)
    return [overall.of(record) for record in records]


class OverallScore:
    """Adds the score to one record after the other; keeps none."""

    def __init__(
        self,
        objectives: Sequence[str],
        *,
        scales: Mapping[str, Scale],
        weights: Mapping[str, float] | Sequence[float] | None = None,
    ) -> None:
        with_overall(objectives)
        self.scales, self.shares = scales, weight_shares(weights, objectives)

    def of(self, record: PreferenceRecord) -> PreferenceRecord:
        return replace(
            record,
            responses=tuple(_scored(response, record, self.shares, self.scales) for response in record.responses),
            scales={**record.scales, OVERALL_NAME: OVERALL_SCALE},
        )


def _scored(
    response: Response, record: PreferenceRecord, shares: Mapping[str, float], scales: Mapping[str, Scale]
) -> Response:
    if OVERALL_NAME in response.scores:
        raise DataError(
            f"{record.label}: a response has a score {OVERALL_NAME!r} already; name it among the objectives, or "
            "rename it"
        )
    missing = [name for name in shares if name not in response.scores]
    if missing:
        raise DataError(f"{record.label}: a response has no score for objective {missing[0]!r}")
    for name in shares:
        if response.scores[name] not in scales[name]:
            raise DataError(
                f"{record.label}: the score {response.scores[name]:g} for {name!r} is outside its scale {scales[name]}"
            )
    mean = math.fsum(share * scales[name].normalise(response.scores[name]) for name, share in shares.items())
    low, high = OVERALL_SCALE.low, OVERALL_SCALE.high
    score = round(low + min(1.0, max(0.0, mean)) * (high - low), _DIGITS)
    return Response(response.text, {**response.scores, OVERALL_NAME: score})
