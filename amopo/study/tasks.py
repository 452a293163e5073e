"""The study on generated tasks: do scores by program rise, for which method, and by how much?

Held-out prompts are answered by the model, as it draws, without a template and asked for the best in each objective;
programs score the answers. Beside that: margins and accuracies on held-out pairs (`amopo.study.measure`).
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from amopo.cli.inputs import Inputs, read_inputs
from amopo.data import get_template
from amopo.data.tokenize import PLAIN
from amopo.data.verifiable import OBJECTIVES, SCALES, write_splits
from amopo.evaluation.tasks import GenerationScores, score_generations
from amopo.report.study_tables import StudyTable
from amopo.study import measure, summary, task_tables
from amopo.study.base import Check, Progress, Results
from amopo.study.settings import TaskSettings

LARGEST_PLACEBO_RISE = 0.03
SMALLEST_RISE = 0.10


class TaskStudy:
    name = "tasks"
    objectives = OBJECTIVES
    template = get_template("brief")
    sharing = "pair"

    def __init__(self, settings: TaskSettings) -> None:
        self.settings = settings

    def fingerprint(self) -> dict[str, Any]:
        # A few tasks with their responses stand for the generator: changed tasks are another study.
        return {"study": self.name, **dataclasses.asdict(self.settings), "generator": generator_digest()}

    def read(self, folder: Path, seed: int) -> Inputs:
        data = folder / "data"
        data.mkdir(parents=True, exist_ok=True)
        sizes = {"train": self.settings.train_prompts, "eval": self.settings.eval_prompts}
        paths = write_splits(data, sizes, seed=seed)
        return read_inputs(str(paths["train"]), eval_data=str(paths["eval"]), objectives=OBJECTIVES).in_memory()

    def measure(self, model: Any, tokenizer: Any, inputs: Inputs, seed: int, on_batch: Progress) -> dict[str, Any]:
        settings = self.settings
        held_out = inputs.evaluation
        lengths = {
            "objectives": OBJECTIVES,
            "scales": inputs.scales,
            "template": self.template,
            "max_prompt_length": settings.max_prompt_length,
            "max_response_length": settings.max_response_length,
        }
        generate = {
            "objectives": OBJECTIVES,
            "scales": SCALES,
            "template": self.template,
            "max_new_tokens": settings.max_new_tokens,
            "on_batch": on_batch,
        }

        def draw(variants: tuple[str, ...], draws: int) -> list[GenerationScores]:
            return [
                score_generations(
                    model,
                    tokenizer,
                    held_out.records,
                    variants=variants,
                    temperature=1.0,
                    seed=1000 * seed + number,
                    **generate,
                )
                for number in range(draws)
            ]

        plain = draw((PLAIN,), settings.plain_draws)
        templated = draw(OBJECTIVES, settings.template_draws)
        likeliest = score_generations(
            model, tokenizer, held_out.records, variants=(PLAIN,), temperature=0.0, **generate
        )
        ranks = measure.ranked(model, tokenizer, held_out.records, **lengths)
        return {
            "drawn": {
                PLAIN: _by_prompt(plain, PLAIN),
                **{name: _by_prompt(templated, name) for name in OBJECTIVES},
            },
            "likeliest": {PLAIN: _by_prompt([likeliest], PLAIN)},
            "margins": measure.margins(model, tokenizer, held_out.pairs, beta=settings.beta, **lengths),
            "ranking": measure.ranking(ranks, OBJECTIVES),
            "examples": [
                {"prompt": record.prompt[-1]["content"], "response": text}
                for record, text in list(zip(held_out.records, plain[0].responses[PLAIN], strict=True))[:5]
            ],
        }

    def summarise(self, results: Results) -> dict[str, Any]:
        return {
            "generated": summary.generated(results, OBJECTIVES),
            "controllability": summary.controllability(results, OBJECTIVES),
            "margins": summary.margins(results, OBJECTIVES),
            "accuracies": summary.accuracies(results, OBJECTIVES),
            "rankings": summary.rankings(results, OBJECTIVES),
        }

    def tables(self, found: Mapping[str, Any]) -> list[StudyTable]:
        return task_tables.tables(found, OBJECTIVES)

    def checks(self, found: Mapping[str, Any]) -> list[Check]:
        return task_tables.checks(
            found, OBJECTIVES, smallest_rise=SMALLEST_RISE, largest_placebo_rise=LARGEST_PLACEBO_RISE
        )


def _by_prompt(draws: list[GenerationScores], variant: str) -> dict[str, list[float]]:
    """Per objective, and as "mean" for their mean, each prompt's score, averaged over the draws."""
    columns: dict[str, list[float]] = {}
    for name in (*OBJECTIVES, None):
        values = [scores.values(variant, name) for scores in draws]
        columns[name or "mean"] = [sum(column) / len(column) for column in zip(*values, strict=True)]
    return columns


def generator_digest() -> str:
    """A digest of tasks, responses and scores that the generator writes for one seed."""
    import json

    from amopo.data.verifiable import generate_tasks, grouped_rows

    rows = list(grouped_rows(generate_tasks(50, seed=0), seed=0))
    return hashlib.blake2b(json.dumps(rows).encode(), digest_size=8).hexdigest()
