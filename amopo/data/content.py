"""What decides the tokens of pairs, beside tokenizer and template, as a digest.

    content = PairContent(objectives)
    for pair in pairs: content.add(pair)
    content.hexdigest()      of ids, prompts, responses, shown scores and signs, in their order
    content.shown            (objective, score) -> id of the first pair whose prompt shows it

It can be taken while pairs are read for another reason, so that the key of kept tokens needs no pass of its own. Keeps
one entry per different score of an objective.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Sequence

from amopo.data.schema import DataError, Pair


class PairContent:
    """Takes one pair after the other; keeps none."""

    def __init__(self, objectives: Sequence[str]) -> None:
        self.objectives = tuple(objectives)
        self.shown: dict[tuple[str, float], int | str] = {}
        self._digest = hashlib.blake2b(digest_size=20)

    @classmethod
    def of(cls, pairs: Iterable[Pair], objectives: Sequence[str]) -> PairContent:
        """Of all these pairs."""
        content = cls(objectives)
        for pair in pairs:
            content.add(pair)
        return content

    def add(self, pair: Pair) -> None:
        shown = shown_scores(pair, self.objectives)
        signs = None if pair.signs is None else [pair.signs.get(name) for name in self.objectives]
        values = (pair.id, pair.prompt, pair.chosen.text, pair.rejected.text, list(shown.items()), signs)
        self._digest.update(json.dumps(values, sort_keys=True).encode() + b"\n")
        for item in shown.items():
            self.shown.setdefault(item, pair.id)

    def hexdigest(self) -> str:
        return self._digest.hexdigest()


def shown_scores(pair: Pair, objectives: Sequence[str]) -> dict[str, float]:
    """The score that each objective's prompt shows: of the response that the objective prefers."""
    shown = {}
    for name in objectives:
        better = pair.rejected if pair.signs is not None and pair.signs.get(name) == -1 else pair.chosen
        if name not in better.scores:
            side = "chosen" if better is pair.chosen else "rejected"
            raise DataError(f"sample {pair.id!r}: the {side} response has no score for objective {name!r}")
        shown[name] = better.scores[name]
    return shown
