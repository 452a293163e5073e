"""What a study measures of a model, as one number per held-out prompt.

Contract
--------
`margins(model, tokenizer, pairs, ...)` -> {"plain" or objective: [one margin per pair]}: `beta` times the mean log-prob
of the chosen response less that of the rejected one, under the plain prompt and under each objective's template with
the chosen response's score, as in training. Their mean over pairs is the trainer's `rewards/margins/<objective>`.

`ranked(model, tokenizer, records, ...)` -> one `Ranked` per record: the log-probs of all its responses under the plain
prompt and under each objective's template with the best score of its scale.

`ranking(found, objectives)` -> for every variant, sums over a prompt's pairs: see `amopo.evaluation.ranking`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from amopo.data import Pair, PreferenceRecord, Scale, Template, tokenize_pairs
from amopo.data.chat import ChatEncoder
from amopo.data.tokenize import PLAIN, render_prompts
from amopo.evaluation.logps import mean_logps
from amopo.evaluation.ranking import Ranked
from amopo.packing.sample import TokenizedSample
from amopo.trainer.imitation import Demonstration

Progress = Callable[[int, int], None]


def tokenize(
    pairs: Sequence[Pair],
    tokenizer: Any,
    *,
    objectives: Sequence[str],
    scales: Mapping[str, Scale],
    template: str | Template,
    max_prompt_length: int,
    max_response_length: int,
    plain: bool = False,
) -> list[TokenizedSample]:
    """One sample per pair; `plain` gives it one prompt, without a template."""
    samples, _ = tokenize_pairs(
        pairs,
        tokenizer,
        objectives=objectives[:1] if plain else objectives,
        scales=scales,
        template=PLAIN if plain else template,
        max_prompt_length=max_prompt_length,
        max_response_length=max_response_length,
    )
    return samples


def margins(
    model: Any,
    tokenizer: Any,
    pairs: Sequence[Pair],
    *,
    objectives: Sequence[str],
    beta: float,
    on_batch: Progress | None = None,
    **lengths_and_template: Any,
) -> dict[str, list[float]]:
    common = {"objectives": objectives, **lengths_and_template}
    templated = tokenize(pairs, tokenizer, **common)
    plain = tokenize(pairs, tokenizer, plain=True, **common)
    prompts = [
        {PLAIN: bare.prompts[0], **dict(zip(objectives, sample.prompts, strict=True))}
        for bare, sample in zip(plain, templated, strict=True)
    ]
    variants = (PLAIN, *objectives)
    rows = [
        Demonstration(prompt[variant], response)
        for prompt, sample in zip(prompts, templated, strict=True)
        for variant in variants
        for response in (sample.chosen, sample.rejected)
    ]
    logps = mean_logps(model, rows, pad=tokenizer.pad_token_id, on_batch=on_batch).view(len(prompts), len(variants), 2)
    differences = beta * (logps[..., 0] - logps[..., 1])
    return {variant: differences[:, index].tolist() for index, variant in enumerate(variants)}


def ranked(
    model: Any,
    tokenizer: Any,
    records: Sequence[PreferenceRecord],
    *,
    objectives: Sequence[str],
    scales: Mapping[str, Scale],
    template: str | Template,
    max_prompt_length: int,
    max_response_length: int,
    on_batch: Progress | None = None,
) -> list[Ranked]:
    chat = ChatEncoder(tokenizer)
    variants = (PLAIN, *objectives)
    rows: list[Demonstration] = []
    for record in records:
        texts = render_prompts(
            record.prompt,
            tokenizer,
            objectives=objectives,
            scales=scales,
            template=template,
            max_prompt_length=max_prompt_length,
        )
        responses = [chat.response(response.text)[:max_response_length] for response in record.responses]
        prompts = chat.encode([texts[variant] for variant in variants])
        rows += [Demonstration(prompt, response) for prompt in prompts for response in responses]
    logps = iter(mean_logps(model, rows, pad=tokenizer.pad_token_id, on_batch=on_batch).tolist())
    return [
        Ranked(
            scores={name: [response.scores[name] for response in record.responses] for name in objectives},
            utilities=[
                sum(scales[name].normalise(response.scores[name]) for name in objectives) / len(objectives)
                for response in record.responses
            ],
            logps={variant: [next(logps) for _ in record.responses] for variant in variants},
        )
        for record in records
    ]


def ranking(found: Sequence[Ranked], objectives: Sequence[str]) -> dict[str, dict[str, dict[str, list[float]]]]:
    """{"overall" | "overall_conflicting" | "own" | "own_conflicting": {variant: {"right": [...], "pairs": [...]}}}."""

    def counted(pairs: Sequence[tuple[float, int]]) -> dict[str, list[float]]:
        return {"right": [right for right, _ in pairs], "pairs": [count for _, count in pairs]}

    table: dict[str, dict[str, dict[str, list[float]]]] = {}
    for suffix, conflicting in (("", False), ("_conflicting", True)):
        table[f"overall{suffix}"] = {
            variant: counted([one.overall(variant, conflicting=conflicting) for one in found])
            for variant in (PLAIN, *objectives)
        }
        table[f"own{suffix}"] = {
            name: counted([one.own(name, conflicting=conflicting) for one in found]) for name in objectives
        }
    return table
