"""Numbers before and after training.

`Change(name, before, after)`: one measured quantity, with the standard errors of both means where they are known.
`direction` says "rose", "fell", "same" if the shown digits agree, "unclear" if the difference is within two standard
errors of itself, or "not a number". `relative` is the change as a part of the start; None for a start at or below 0,
and for what is `signed`: of a margin near 0 any change is many times the start, which says nothing.
`Section(title, changes)`: quantities that belong together. `preference_sections(before, after, objectives)`: accuracies
and margins on held-out pairs, from the metrics of two evaluations.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Change:
    name: str
    before: float
    after: float
    before_error: float | None = None
    after_error: float | None = None
    digits: int = 2
    signed: bool = False

    @property
    def difference(self) -> float:
        return self.after - self.before

    @property
    def error(self) -> float | None:
        """Standard error of the difference, as of two independent means."""
        if self.before_error is None or self.after_error is None:
            return None
        return math.hypot(self.before_error, self.after_error)

    @property
    def relative(self) -> float | None:
        if self.signed or not self.before > 0 or not math.isfinite(self.difference):
            return None
        return self.difference / self.before

    @property
    def direction(self) -> str:
        if not math.isfinite(self.difference):
            return "not a number"
        shown = round(self.after, self.digits) - round(self.before, self.digits)
        if abs(shown) < 0.5 * 10**-self.digits:
            return "same"
        if self.error is not None and abs(self.difference) <= 2 * self.error:
            return "unclear"
        return "rose" if shown > 0 else "fell"


@dataclass(frozen=True)
class Section:
    title: str
    changes: Sequence[Change] = field(default_factory=tuple)


def preference_sections(
    before: Mapping[str, float], after: Mapping[str, float], objectives: Sequence[str]
) -> list[Section]:
    """Accuracies and margins on held-out pairs, per objective."""
    sections = []
    for title, metric, signed in (
        ("held-out pairs: accuracy", "rewards/accuracies", False),
        ("held-out pairs: margin", "rewards/margins", True),
    ):
        keys = {name: f"{metric}/{name}" for name in objectives} | {"mean": metric}
        changes = [Change(name, before[key], after[key], digits=3, signed=signed) for name, key in keys.items()]
        sections.append(Section(title, changes))
    return sections
