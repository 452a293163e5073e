"""What the study on rated summaries shows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from amopo.data.tokenize import PLAIN
from amopo.report.study_tables import MISSING, StudyTable, change_cells, number
from amopo.study.methods import TITLES
from amopo.study.task_tables import (
    INTERVALS,
    accuracy_table,
    against_table,
    asked_table,
    conflict_tables,
    control_tables,
    margin_table,
    words,
)


def tables(found: Mapping[str, Any], objectives: Sequence[str]) -> list[StudyTable]:
    best = found["best"]
    return [
        best_table(found, objectives),
        over_random_table(found),
        against_table(
            "Human rating of the response ranked first, plain prompt: mean against gaussian AMoPO", best[PLAIN]["mean"]
        ),
        asked_table("Asked for the best in one objective: human rating on it", best, objectives),
        *control_tables(found["controllability"], objectives),
        margin_table("Held-out pairs: margin", found["margins"], objectives),
        accuracy_table("Held-out pairs: accuracy", found["rankings"]["overall"], (PLAIN, *objectives)),
        *conflict_tables(found["rankings"], objectives),
    ]


def best_table(found: Mapping[str, Any], objectives: Sequence[str]) -> StudyTable:
    names = [*objectives, "mean"]
    best, bounds = found["best"][PLAIN], found["bounds"]

    def bound(title: str, which: str) -> list[str]:
        return [title, *(number(bounds[which][name]["mean"]) for name in names), *[MISSING] * 3]

    rows = [bound("taken at random", "random")]
    rows += [
        [
            TITLES[method],
            *(number(best[name][method]["value"]["mean"]) for name in names),
            *change_cells(best["mean"][method].get("change")),
        ]
        for method in best["mean"]
    ]
    rows.append(bound("best rated", "oracle"))
    return StudyTable(
        "Human rating of the response ranked first, plain prompt",
        ["", *map(words, names), "change of mean", *INTERVALS],
        rows,
        "Ratings from 1 to 5. Change: against the imitation start. Best rated: in that column, so each is a bound of "
        "its own.",
    )


def over_random_table(found: Mapping[str, Any]) -> StudyTable:
    rows = [[TITLES[method], *change_cells(entry)] for method, entry in found["over_random"]["mean"].items()]
    return StudyTable(
        "Human rating of the response ranked first, plain prompt: mean against one taken at random",
        ["", "difference", *INTERVALS],
        rows,
    )
