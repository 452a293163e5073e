"""Does asking for an objective raise it?

Contract
--------
A model wrote answers under the plain prompt and under each objective's template with its best score. From the mean
scores of these answers:

    matrix[i][j]     score on objective j when objective i was asked for, K x K
    plain[j]         score on objective j when nothing was asked for
    over_plain[k]    matrix[k][k] - plain[k]: asking for k against not asking
    over_others[k]   matrix[k][k] - mean over i != k of matrix[i][k]: asking for k against asking for something else

A template that lifts everything alike has a positive `over_plain` and an `over_others` of 0; only the second says that
the model tells the objectives apart. Both work on numbers and on tensors (bootstrap tables) alike.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any


def over_plain(scores: Mapping[str, Mapping[str, Any]], objective: str, *, plain: str = "plain") -> Any:
    """Asking for an objective against not asking. `scores[asked][scored]`; `plain` is the name of not asking."""
    return scores[objective][objective] - scores[plain][objective]


def over_others(scores: Mapping[str, Mapping[str, Any]], objective: str, objectives: Sequence[str]) -> Any:
    """Asking for an objective against asking for the others, on average."""
    others = [name for name in objectives if name != objective]
    if not others:
        raise ValueError(f"{objective!r} is the only objective, so there is no other one to ask for")
    return scores[objective][objective] - sum(scores[name][objective] for name in others) / len(others)


def matrix(scores: Mapping[str, Mapping[str, float]], objectives: Sequence[str]) -> list[list[float]]:
    """Row i: asked for objective i. Column j: the score on objective j."""
    return [[scores[asked][scored] for scored in objectives] for asked in objectives]
