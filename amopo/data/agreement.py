"""Where objectives tie, and where they disagree.

`Agreement(objectives).add(record)` compares every two responses of a record whose texts differ. `conflicts[j][k]`
counts the comparisons in which objectives j and k prefer different responses; on the diagonal stand the ties, in which
an objective prefers neither. Texts that are equal but for space around them are counted apart.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations

from amopo.data.schema import PreferenceRecord


class Agreement:
    """Counts over all records so far."""

    def __init__(self, objectives: Sequence[str]) -> None:
        self.objectives = tuple(objectives)
        self.comparisons = self.identical = self.tied_everywhere = self.in_conflict = 0
        self.conflicts = [[0] * len(self.objectives) for _ in self.objectives]

    def add(self, record: PreferenceRecord) -> None:
        for one, other in combinations(record.responses, 2):
            if one.text.strip() == other.text.strip():
                self.identical += 1
                continue
            self.comparisons += 1
            signs = [
                (one.scores[name] > other.scores[name]) - (one.scores[name] < other.scores[name])
                for name in self.objectives
            ]
            self.tied_everywhere += not any(signs)
            self.in_conflict += min(signs) < 0 < max(signs)
            for j, first in enumerate(signs):
                self.conflicts[j][j] += first == 0
                for k in range(j):
                    if first * signs[k] < 0:
                        self.conflicts[j][k] += 1
                        self.conflicts[k][j] += 1
