"""Which scale each objective is scored on.

A scale comes from the first of: the caller's argument (`scales={"fluency": Scale(1, 5)}`, or `--scales fluency=1:5`),
the record's field `"scales": {"fluency": [1, 5]}`, the form of the row (`KNOWN_SCALES` in HelpSteer2's rows and in
those released with AMoPO, which are made of them). An objective with none of them raises `DataError` with the remedy: a
name alone tells no scale, since helpfulness goes from 0 to 4 in one data set and from 1 to 5 in another.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from amopo.data.schema import DataError, PreferenceRecord, Scale

# The five dimensions of HelpSteer2, as its annotators scored them. For forms of rows that are of that data set;
# elsewhere the same name may be on another scale, which no score between 1 and 4 would show.
KNOWN_SCALES: Mapping[str, Scale] = {
    name: Scale(0, 4) for name in ("helpfulness", "correctness", "coherence", "complexity", "verbosity")
}

ScaleLike = Scale | Sequence[float]


def as_scale(objective: str, value: object) -> Scale:
    """A `Scale` from a `Scale` or from two numbers [low, high]."""
    if isinstance(value, Scale):
        return value
    if isinstance(value, list | tuple) and len(value) == 2:
        try:
            return Scale(*value)
        except DataError as error:
            raise DataError(f"scale of objective {objective!r}: {error}") from None
    raise DataError(f"scale of objective {objective!r} must be [low, high], but is {value!r}")


def as_scales(scales: object) -> dict[str, Scale]:
    """A dict of scales from what a caller, a record or a configuration file gave; None means none."""
    if scales is None:
        return {}
    if not isinstance(scales, Mapping):
        raise DataError(f"scales must map each objective to [low, high], but is {scales!r}")
    return {name: as_scale(name, value) for name, value in scales.items()}


def parse_scales(text: str) -> dict[str, Scale]:
    """Scales from command-line text such as "informativeness=1:6,quality=1:6"; empty text gives none."""
    scales: dict[str, Scale] = {}
    for part in filter(None, (piece.strip() for piece in text.split(","))):
        name, equals, interval = (piece.strip() for piece in part.partition("="))
        low, colon, high = interval.partition(":")
        try:
            if not (name and equals and colon):
                raise ValueError
            ends = float(low), float(high)
        except ValueError:
            raise DataError(f"cannot read the scale {part!r}; write objective=low:high, e.g. quality=1:6") from None
        if name in scales:
            raise DataError(f"the scale of objective {name!r} is given twice in {text!r}")
        scales[name] = as_scale(name, ends)
    return scales


def check_objectives(objectives: Sequence[str]) -> tuple[str, ...]:
    """The objectives as a tuple. At least one, each a non-empty name, none twice."""
    if isinstance(objectives, str):
        raise DataError(f"objectives must be a list of names, not one string; write [{objectives!r}]")
    objectives = tuple(objectives)
    if not objectives:
        raise DataError("objectives is empty (K = 0); name at least one, e.g. helpfulness")
    for position, name in enumerate(objectives):
        if not isinstance(name, str) or not name.strip():
            raise DataError(f"objectives must be non-empty names, but number {position + 1} is {name!r}")
        if name in objectives[:position]:
            raise DataError(f"objective {name!r} is given twice; name each objective once")
    return objectives


def resolve_scales(
    objectives: Sequence[str], *, given: Mapping[str, Scale] | None = None, declared: Mapping[str, Scale] | None = None
) -> dict[str, Scale]:
    """The scale of each objective: `given` by the caller first, then `declared` by the record or its form."""
    scales = {**(declared or {}), **(given or {})}
    missing = [objective for objective in objectives if objective not in scales]
    if missing:
        raise DataError(_undeclared(missing))
    return {objective: scales[objective] for objective in objectives}


def known_scales(names: Iterable[str]) -> dict[str, list[float]]:
    """Those of these names that HelpSteer2 scores, as a form declares them."""
    found = dict.fromkeys(name for name in names if name in KNOWN_SCALES)
    return {name: [KNOWN_SCALES[name].low, KNOWN_SCALES[name].high] for name in found}


def _undeclared(missing: Sequence[str]) -> str:
    first = missing[0]
    text = (
        f"the scale of objective {first!r} is not known; declare it: "
        f'scales={{"{first}": Scale(low, high)}}, --scales {first}=low:high, '
        f'or a field "scales": {{"{first}": [low, high]}} in the record'
    )
    if first in KNOWN_SCALES:
        flag = ",".join(f"{name}=0:4" for name in missing if name in KNOWN_SCALES)
        text += f" (scores of HelpSteer2 go from 0 to 4: --scales {flag})"
    return text


def scales_of(records: Iterable[PreferenceRecord]) -> dict[str, Scale]:
    """The scales that the records were read with. Records that disagree about one raise DataError."""
    agreed = AgreedScales()
    for record in records:
        agreed.add(record)
    return agreed.scales


class AgreedScales:
    """The scales of one record after the other; keeps the name of the first record with each, no records."""

    def __init__(self) -> None:
        self.scales: dict[str, Scale] = {}
        self._first: dict[str, str] = {}

    def add(self, record: PreferenceRecord) -> None:
        """Raises DataError for a record that disagrees with those before it."""
        for objective, scale in record.scales.items():
            if objective not in self.scales:
                self.scales[objective], self._first[objective] = scale, record.label
            elif self.scales[objective] != scale:
                raise DataError(
                    f"{record.label} scores {objective!r} on {scale}, but {self._first[objective]} on "
                    f"{self.scales[objective]}; one objective has one scale"
                )
