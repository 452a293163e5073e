"""The study on rated summaries: best of n re-ranking, scored by people.

Every prompt comes with several responses that people have rated on each objective. A small model trains on pairs of the
training prompts; on held-out prompts it ranks all responses by their mean log-prob per token, under the plain prompt
and asked for the best in each objective. What counts is how people rated the response that it puts first. The bounds:
a response taken at random, and the best rated one.
"""

from __future__ import annotations

import dataclasses
import hashlib
import random
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from amopo.cli.inputs import Inputs, Part, read_inputs
from amopo.data import DataError, Scale, get_template
from amopo.data.tokenize import PLAIN
from amopo.evaluation.ranking import Ranked
from amopo.report.study_tables import StudyTable
from amopo.study import measure, summary, summeval_tables
from amopo.study.base import Check, Progress, Results
from amopo.study.methods import START
from amopo.study.settings import SummevalSettings

OBJECTIVES = ("coherence", "consistency", "fluency", "relevance")
SCALES = {name: Scale(1, 5) for name in OBJECTIVES}


class SummevalStudy:
    name = "summeval"
    objectives = OBJECTIVES
    # After the article, so that all objectives share its tokens.
    template = dataclasses.replace(get_template("brief"), name="brief, after the prompt", position="suffix")
    sharing = "tree"

    def __init__(self, settings: SummevalSettings, data: str | Path) -> None:
        self.settings = settings
        self.data = Path(data)

    def fingerprint(self) -> dict[str, Any]:
        digest = hashlib.blake2b(self.data.read_bytes(), digest_size=8).hexdigest()
        return {"study": self.name, **dataclasses.asdict(self.settings), "data": digest}

    def read(self, folder: Path, seed: int) -> Inputs:
        inputs = read_inputs(
            str(self.data),
            objectives=OBJECTIVES,
            scales=SCALES,
            eval_fraction=self.settings.eval_fraction,
            strategy="all",
            seed=seed,
        ).in_memory()
        pairs = inputs.train.pairs
        if len(pairs) < self.settings.pairs:
            raise DataError(
                f"{self.data}: its training prompts give {len(pairs)} pairs, but the study takes "
                f"{self.settings.pairs}; give more data"
            )
        drawn = random.Random(seed).sample(pairs, self.settings.pairs)
        return dataclasses.replace(inputs, train=Part(inputs.train.records, drawn, inputs.train.report))

    def measure(self, model: Any, tokenizer: Any, inputs: Inputs, seed: int, on_batch: Progress) -> dict[str, Any]:
        found = measure.ranked(
            model,
            tokenizer,
            inputs.evaluation.records,
            objectives=OBJECTIVES,
            scales=inputs.scales,
            template=self.template,
            max_prompt_length=self.settings.max_prompt_length,
            max_response_length=self.settings.max_response_length,
            on_batch=on_batch,
        )
        return {
            "best": {variant: _ratings([one.best(variant) for one in found]) for variant in (PLAIN, *OBJECTIVES)},
            "random": _bounds(found, Ranked.random),
            "oracle": _bounds(found, Ranked.oracle),
            "margins": {
                variant: [self.settings.beta * one.margin(variant) for one in found] for variant in (PLAIN, *OBJECTIVES)
            },
            "ranking": measure.ranking(found, OBJECTIVES),
            "candidates": sum(len(one.utilities) for one in found) / len(found),
        }

    def summarise(self, results: Results) -> dict[str, Any]:
        names = (*OBJECTIVES, "mean")
        return {
            "best": {
                variant: {
                    name: summary.compared(summary.score_tables(results, "best", variant, name)) for name in names
                }
                for variant in (PLAIN, *OBJECTIVES)
            },
            "bounds": {
                bound: {name: summary.entry(summary.score_tables(results, bound, name)[START]) for name in names}
                for bound in ("random", "oracle")
            },
            "over_random": {name: summary.against_bound(results, "random", name) for name in names},
            "controllability": summary.controllability(results, OBJECTIVES, kind="best"),
            "margins": summary.margins(results, OBJECTIVES),
            "rankings": summary.rankings(results, OBJECTIVES),
        }

    def tables(self, found: Mapping[str, Any]) -> list[StudyTable]:
        return summeval_tables.tables(found, OBJECTIVES)

    def checks(self, found: Mapping[str, Any]) -> list[Check]:
        """None: what a model of this size can learn from so few summaries was not known before."""
        return []


def _ratings(rows: Sequence[Mapping[str, float]]) -> dict[str, list[float]]:
    columns = {name: [row[name] for row in rows] for name in OBJECTIVES}
    return {**columns, "mean": [sum(row.values()) / len(row) for row in rows]}


def _bounds(found: Sequence[Ranked], bound: Any) -> dict[str, list[float]]:
    columns = {name: [bound(one, name) for one in found] for name in OBJECTIVES}
    return {**columns, "mean": [bound(one) for one in found]}
