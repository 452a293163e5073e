"""Scores, by program, of what a model generates for verifiable tasks.

Contract
--------
`score_generations(model, tokenizer, records, ...)` generates once per record and variant: the plain prompt ("plain"),
and the prompt in each objective's template with the best score of its scale; or the given `variants` of these.
`GenerationScores` holds every score; `mean(variant, objective)` and `error(variant, objective)` give mean and standard
error, with objective None for the mean over objectives (the error then is of the per-response means). Records must
carry their task.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from amopo.data.chat import ChatEncoder
from amopo.data.schema import PreferenceRecord, Scale
from amopo.data.templates import Template
from amopo.data.tokenize import PLAIN, render_prompts
from amopo.data.verifiable import OBJECTIVES, score_response, task_from_record
from amopo.evaluation.generate import generate


@dataclass(frozen=True)
class GenerationScores:
    objectives: tuple[str, ...]
    responses: Mapping[str, Sequence[str]]
    """Texts by variant, in the order of the records."""
    scores: Mapping[str, Sequence[Mapping[str, float]]]
    """By variant, one score per objective for every response."""

    def values(self, variant: str, objective: str | None = None) -> list[float]:
        rows = self.scores[variant]
        if objective is not None:
            return [row[objective] for row in rows]
        return [sum(row[name] for name in self.objectives) / len(self.objectives) for row in rows]

    def mean(self, variant: str, objective: str | None = None) -> float:
        values = self.values(variant, objective)
        return sum(values) / len(values)

    def error(self, variant: str, objective: str | None = None) -> float:
        values = self.values(variant, objective)
        mean = sum(values) / len(values)
        return math.sqrt(sum((value - mean) ** 2 for value in values) / max(1, len(values) - 1) / len(values))

    def summary(self) -> dict[str, dict[str, dict[str, float]]]:
        """Mean and standard error by variant and objective, "mean" for the mean over objectives."""
        return {
            variant: {
                name or "mean": {"mean": self.mean(variant, name), "error": self.error(variant, name)}
                for name in (*self.objectives, None)
            }
            for variant in self.scores
        }


def score_generations(
    model: Any,
    tokenizer: Any,
    records: Sequence[PreferenceRecord],
    *,
    objectives: Sequence[str],
    scales: Mapping[str, Scale],
    template: str | Template = "rubric",
    variants: Sequence[str] | None = None,
    max_prompt_length: int | None = None,
    max_new_tokens: int = 64,
    batch_size: int = 256,
    temperature: float = 0.0,
    seed: int = 0,
    on_batch: Callable[[int, int], None] | None = None,
) -> GenerationScores:
    tasks = [task_from_record(record) for record in records]
    if not tasks:
        raise ValueError("there are no records to generate for")
    if unknown := [name for name in objectives if name not in OBJECTIVES]:
        raise ValueError(f"objective {unknown[0]!r} is not scored by program; those are: {', '.join(OBJECTIVES)}")
    prompts = [
        render_prompts(
            record.prompt,
            tokenizer,
            objectives=objectives,
            scales=scales,
            template=template,
            max_prompt_length=max_prompt_length,
        )
        for record in records
    ]
    variants = (PLAIN, *objectives) if variants is None else tuple(variants)
    if unknown := [name for name in variants if name not in (PLAIN, *objectives)]:
        raise ValueError(f"unknown variant {unknown[0]!r}; known: {', '.join((PLAIN, *objectives))}")
    # one list, so that prompts of similar length share a batch whatever their variant
    texts = generate(
        model,
        tokenizer,
        [rendered[variant] for variant in variants for rendered in prompts],
        end_of_turn_id=ChatEncoder(tokenizer).end_of_turn_id,
        max_new_tokens=max_new_tokens,
        batch_size=batch_size,
        temperature=temperature,
        seed=seed,
        on_batch=on_batch,
    )
    responses = {
        variant: texts[index * len(tasks) : (index + 1) * len(tasks)] for index, variant in enumerate(variants)
    }
    scores = {
        variant: [score_response(task, text) for task, text in zip(tasks, given, strict=True)]
        for variant, given in responses.items()
    }
    return GenerationScores(tuple(objectives), responses, scores)
