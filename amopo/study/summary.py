"""What the results of a study amount to, with intervals.

Every entry is a dictionary of an `Estimate` (`amopo.evaluation.statistics`): mean over seeds, each seed's value, the t
interval over seeds, the bootstrap interval over prompts. Changes are against the imitation start of the same seed,
prompt by prompt.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from amopo.data.tokenize import PLAIN
from amopo.evaluation import controllability as control
from amopo.evaluation.statistics import Resamples, estimate
from amopo.study.base import Results
from amopo.study.methods import START

Entry = dict[str, Any]
REFERENCE = "gaussian"
"""The method that others are compared with: the paper's."""


def entry(table: Tensor) -> Entry:
    return dataclasses.asdict(estimate(table))


def methods_of(results: Results) -> list[str]:
    return list(next(iter(results.values())))


def column(results: Results, method: str, *path: str) -> list[Any]:
    """One value per seed, from deep inside the results."""
    found = []
    for of_seed in results.values():
        value: Any = of_seed[method]
        for name in path:
            value = value[name]
        found.append(value)
    return found


def compared(tables: Mapping[str, Tensor], *, relative: bool = False) -> dict[str, dict[str, Entry]]:
    """Per method: the value, its change from the start, and what sets it apart from AMoPO.

    `relative` adds the change as a part of the start, for scores; of a margin near 0 that would say nothing.
    """
    found = {}
    for method, table in tables.items():
        found[method] = {"value": entry(table)}
        if method != START:
            found[method]["change"] = entry(table - tables[START])
            if relative:
                found[method]["relative"] = entry(table / tables[START] - 1)
        if method not in (START, REFERENCE) and REFERENCE in tables:
            found[method]["against_reference"] = entry(table - tables[REFERENCE])
    return found


def score_tables(results: Results, *path: str) -> dict[str, Tensor]:
    """Means over prompts of what stands at `path` in every result, by method."""
    resamples = Resamples([len(values) for values in column(results, START, *path)])
    return {method: resamples.means(column(results, method, *path)) for method in methods_of(results)}


def generated(results: Results, objectives: Sequence[str]) -> dict[str, Any]:
    """{"drawn" | "likeliest": {variant: {objective or "mean": compared}}}."""
    return {
        kind: {
            variant: {
                name: compared(score_tables(results, kind, variant, name), relative=True)
                for name in (*objectives, "mean")
            }
            for variant in variants
        }
        for kind, variants in (("drawn", (PLAIN, *objectives)), ("likeliest", (PLAIN,)))
    }


def controllability(results: Results, objectives: Sequence[str], *, kind: str = "drawn") -> dict[str, dict[str, Any]]:
    """Per method: the matrix, and per objective what asking for it does."""
    scores = {
        asked: {scored: score_tables(results, kind, asked, scored) for scored in objectives}
        for asked in (PLAIN, *objectives)
    }
    found = {}
    for method in methods_of(results):
        of_method = {asked: {scored: scores[asked][scored][method] for scored in objectives} for asked in scores}
        means = {
            asked: {scored: entry(table)["mean"] for scored, table in row.items()} for asked, row in of_method.items()
        }
        over_others = {name: control.over_others(of_method, name, objectives) for name in objectives}
        found[method] = {
            "matrix": control.matrix(means, objectives),
            "plain": [means[PLAIN][name] for name in objectives],
            "over_plain": {name: entry(control.over_plain(of_method, name)) for name in objectives},
            "over_others": {name: entry(table) for name, table in over_others.items()},
            "over_others_mean": entry(sum(over_others.values()) / len(objectives)),
        }
    return found


def rankings(results: Results, objectives: Sequence[str]) -> dict[str, Any]:
    """Accuracies over all held-out pairs and over conflicting ones: {kind: {variant: compared}}."""
    found: dict[str, Any] = {}
    for kind in ("overall", "overall_conflicting", "own", "own_conflicting"):
        variants = list(column(results, START, "ranking", kind)[0])
        tables = {variant: ratio_tables(results, kind, variant) for variant in variants}
        asked = [tables[name] for name in objectives]
        tables["mean"] = {method: sum(table[method] for table in asked) / len(asked) for method in asked[0]}
        found[kind] = {variant: compared(table) for variant, table in tables.items()}
        found[kind]["pairs"] = {
            variant: sum(sum(pairs) for pairs in column(results, START, "ranking", kind, variant, "pairs"))
            for variant in variants
        }
    return found


def margins(results: Results, objectives: Sequence[str]) -> dict[str, dict[str, Any]]:
    """{variant: compared}: means of the held-out margins."""
    return {variant: compared(score_tables(results, "margins", variant)) for variant in (PLAIN, *objectives)}


def accuracies(results: Results, objectives: Sequence[str]) -> dict[str, dict[str, Any]]:
    """{variant: compared}: the share of margins above 0."""
    signs = {
        seed: {
            method: {
                "signs": {
                    variant: [float(margin > 0) for margin in values] for variant, values in found["margins"].items()
                }
            }
            for method, found in of_seed.items()
        }
        for seed, of_seed in results.items()
    }
    return {variant: compared(score_tables(signs, "signs", variant)) for variant in (PLAIN, *objectives)}


def ratio_tables(results: Results, kind: str, variant: str) -> dict[str, Tensor]:
    """Right pairs over pairs, by method."""
    pairs = column(results, START, "ranking", kind, variant, "pairs")
    resamples = Resamples([len(values) for values in pairs])
    return {
        method: resamples.ratios(column(results, method, "ranking", kind, variant, "right"), pairs)
        for method in methods_of(results)
    }


def against_bound(results: Results, bound: str, name: str) -> dict[str, Entry]:
    """Per method: the rating of what it ranks first under the plain prompt, less the bound's."""
    reached, bounds = score_tables(results, "best", PLAIN, name), score_tables(results, bound, name)
    return {method: entry(table - bounds[START]) for method, table in reached.items()}
