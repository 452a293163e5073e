"""What the study on tasks shows, and what must hold in it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from amopo.data.tokenize import PLAIN
from amopo.report.study_tables import (
    StudyTable,
    change_cells,
    interval,
    number,
    percent,
    percent_cells,
    signed,
)
from amopo.study.base import Check
from amopo.study.methods import METHODS, TITLES

INTERVALS = ("95 % over seeds", "95 % over prompts")


def words(name: str) -> str:
    return name.replace("_", " ")


def tables(found: Mapping[str, Any], objectives: Sequence[str]) -> list[StudyTable]:
    drawn, likeliest = found["generated"]["drawn"], found["generated"]["likeliest"]
    names = [*objectives, "mean"]
    return [
        scores_table("Drawn answers, plain prompt", drawn[PLAIN], names, note="Scores from 0 to 4, temperature 1."),
        scores_table("Likeliest answers, plain prompt", likeliest[PLAIN], names, note="Greedy decoding."),
        against_table("Drawn answers, plain prompt: mean score against gaussian AMoPO", drawn[PLAIN]["mean"]),
        asked_table("Asked for the best in one objective: that score", drawn, objectives),
        asked_table("Asked for the best in one objective: mean score", drawn, objectives, scored="mean"),
        *control_tables(found["controllability"], objectives),
        margin_table("Held-out pairs: margin", found["margins"], objectives),
        accuracy_table("Held-out pairs: accuracy", found["accuracies"], (PLAIN, *objectives)),
        *conflict_tables(found["rankings"], objectives),
    ]


def scores_table(title: str, by_name: Mapping[str, Any], names: Sequence[str], *, note: str) -> StudyTable:
    header = ["", *map(words, names), "change of mean", *INTERVALS]
    rows = [
        [
            TITLES[method],
            *(number(by_name[name][method]["value"]["mean"]) for name in names),
            *percent_cells(by_name["mean"][method].get("relative")),
        ]
        for method in by_name["mean"]
    ]
    return StudyTable(title, header, rows, note)


def against_table(title: str, by_method: Mapping[str, Any]) -> StudyTable:
    rows = [
        [TITLES[method], *change_cells(found["against_reference"], digits=3)]
        for method, found in by_method.items()
        if "against_reference" in found
    ]
    return StudyTable(title, ["", "difference", *INTERVALS], rows)


def asked_table(title: str, drawn: Mapping[str, Any], objectives: Sequence[str], *, scored: str = "") -> StudyTable:
    def cell(method: str, asked: str) -> str:
        found = drawn[asked][scored or asked][method]
        change = f" ({signed(found['change']['mean'])})" if "change" in found else ""
        return number(found["value"]["mean"]) + change

    methods = drawn[PLAIN]["mean"]
    rows = [[TITLES[method], *(cell(method, asked) for asked in objectives)] for method in methods]
    return StudyTable(title, ["", *map(words, objectives)], rows, "In brackets: against the imitation start.")


def control_tables(found: Mapping[str, Any], objectives: Sequence[str]) -> list[StudyTable]:
    def row(method: str, which: str) -> list[str]:
        entries = [found[method][which][name] for name in objectives]
        return [TITLES[method], *(f"{signed(e['mean'])} {interval(e['over_prompts'])}" for e in entries)]

    return [
        StudyTable(
            "Controllability: asking for an objective against asking for the others",
            ["", *map(words, objectives), "mean", *INTERVALS],
            [[*row(method, "over_others"), *change_cells(found[method]["over_others_mean"])] for method in found],
            "Per objective with the interval over prompts.",
        ),
        StudyTable(
            "Controllability: asking for an objective against the plain prompt",
            ["", *map(words, objectives)],
            [row(method, "over_plain") for method in found],
            "With the interval over prompts.",
        ),
    ]


def margin_table(title: str, found: Mapping[str, Any], objectives: Sequence[str]) -> StudyTable:
    def cell(one: Mapping[str, Any]) -> str:
        change = f" ({signed(one['change']['mean'])})" if "change" in one else ""
        return number(one["value"]["mean"]) + change

    variants = (PLAIN, *objectives)
    rows = [[TITLES[method], *(cell(found[variant][method]) for variant in variants)] for method in found[PLAIN]]
    return StudyTable(title, ["", *map(words, variants)], rows, "In brackets: against the imitation start.")


def accuracy_table(
    title: str, found: Mapping[str, Any], variants: Sequence[str], *, note: str = "", change: str | None = None
) -> StudyTable:
    """Per variant the accuracy in per cent; `change` names the one whose change is shown in points, with intervals."""
    rows = []
    for method in found[variants[0]]:
        cells = [number(_percent(found[variant][method]["value"]["mean"]), 1) for variant in variants]
        if change:
            cells += change_cells(found[change][method].get("change"), digits=1, scale=100)
        rows.append([TITLES[method], *cells])
    header = ["", *map(words, variants), *(["change of mean", *INTERVALS] if change else [])]
    return StudyTable(title, header, rows, f"Per cent of the pairs.{' ' + note if note else ''}")


def _percent(value: float | None) -> float | None:
    return None if value is None else 100 * value


def conflict_tables(found: Mapping[str, Any], objectives: Sequence[str]) -> list[StudyTable]:
    pairs = found["overall_conflicting"]["pairs"][PLAIN]
    asked = ", ".join(f"{words(name)} {found['own_conflicting']['pairs'][name]}" for name in objectives)
    return [
        accuracy_table(
            "Conflicting pairs: the overall winner is preferred",
            found["overall_conflicting"],
            (PLAIN, *objectives, "mean"),
            change="mean",
            note=f"{pairs} pairs of all seeds; mean: over the objectives' templates.",
        ),
        accuracy_table(
            "Conflicting pairs: asked for an objective, the response better in it is preferred",
            found["own_conflicting"],
            (*objectives, "mean"),
            change="mean",
            note=f"Pairs of all seeds: {asked}.",
        ),
    ]


def checks(
    found: Mapping[str, Any],
    objectives: Sequence[str],
    *,
    smallest_rise: float,
    largest_placebo_rise: float,
) -> list[Check]:
    """What must hold: AMoPO raises every margin with every seed and the mean score on average; the placebo does not."""
    made = []
    means = found["generated"]["drawn"][PLAIN]["mean"]
    for method in METHODS:
        if method.name not in means:
            continue
        relative = means[method.name]["relative"]
        if method.swapped:
            made.append(
                Check(
                    f"{method.title}: mean score of drawn answers {percent(relative['mean'])}, at most "
                    f"{percent(largest_placebo_rise, 0)}",
                    relative["mean"] <= largest_placebo_rise,
                )
            )
        elif method.is_amopo:
            rises = {name: found["margins"][name][method.name]["change"]["per_seed"] for name in objectives}
            text = ", ".join(f"{words(name)} {signed(min(values))}" for name, values in rises.items())
            made.append(
                Check(
                    f"{method.title}: every held-out margin rises with every seed (smallest rise: {text})",
                    all(min(values) > 0 for values in rises.values()),
                )
            )
            made.append(
                Check(
                    f"{method.title}: mean score of drawn answers {percent(relative['mean'])}, at least "
                    f"{percent(smallest_rise, 0)}",
                    relative["mean"] >= smallest_rise,
                )
            )
    return made
