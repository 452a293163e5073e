"""The preference data of a command, read and checked before anything is loaded or trained.

`read_inputs(...)` -> `Inputs`: the records for training and for evaluation, their pairs, the scales, and lines that say
what was read, skipped and held out. Evaluation data is a file of its own, or a part of the prompts held out by a seed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from amopo.cli.errors import UsageError
from amopo.data import (
    DataError,
    Pair,
    PairReport,
    PreferenceRecord,
    ReadReport,
    Scale,
    add_overall,
    build_pairs,
    overall_weights,
    parse_scales,
    read_records,
    scales_of,
    split_records,
    with_overall,
)
from amopo.data.scales import as_scales


@dataclass
class Part:
    records: list[PreferenceRecord] = field(default_factory=list)
    pairs: list[Pair] = field(default_factory=list)
    report: PairReport | None = None


@dataclass
class Inputs:
    train: Part
    evaluation: Part
    scales: dict[str, Scale]
    left_out: list[str] = field(default_factory=list)

    def lines(self) -> list[str]:
        found = [*self.left_out, f"training data: {self.train.report}"]
        if self.evaluation.report is None:
            return [*found, "evaluation data: none, so there will be no before and after"]
        return [*found, f"evaluation data: {self.evaluation.report}"]


def read_scales(value: str | Mapping[str, Any] | None) -> dict[str, Scale]:
    """Scales from a flag's text or a YAML mapping."""
    if isinstance(value, str):
        return parse_scales(value)
    return as_scales(value)


def read_score_weights(
    value: str | Mapping[str, float] | Sequence[float] | None,
) -> Mapping[str, float] | Sequence[float] | None:
    """Weights of the scores from "a=2,b=1", "2,1", or what YAML holds."""
    if not isinstance(value, str):
        return value
    pieces = [piece.strip() for piece in value.split(",") if piece.strip()]
    try:
        if all("=" in piece for piece in pieces):
            return {name.strip(): float(number) for name, number in (piece.split("=", 1) for piece in pieces)}
        return [float(piece) for piece in pieces]
    except ValueError:
        raise UsageError(f"--score-weights: write a=2,b=1 or 2,1, not {value!r}") from None


def read_inputs(
    data: str,
    *,
    objectives: Sequence[str],
    eval_data: str | None = None,
    eval_fraction: float = 0.1,
    scales: Mapping[str, Scale] | None = None,
    format: str = "auto",
    strategy: str = "best_worst",
    pairs_per_prompt: int | None = None,
    orientation: str = "overall",
    overall: bool = False,
    score_weights: Mapping[str, float] | Sequence[float] | None = None,
    seed: int = 0,
) -> Inputs:
    left_out: list[str] = []

    def read(path: str) -> list[PreferenceRecord]:
        report = ReadReport()
        found = read_records(path, objectives=objectives, scales=scales, format=format, report=report)
        if not report.is_complete:
            left_out.append(f"{path}: {report}")
        return found

    records = read(data)
    if eval_data is not None:
        train, held_out = records, read(eval_data)
    else:
        train, held_out = split_records(records, eval_fraction=eval_fraction, seed=seed)
    found_scales = scales_of([*train, *held_out])
    if overall:
        made_of = {"objectives": objectives, "scales": found_scales, "weights": score_weights}
        train, held_out = add_overall(train, **made_of), add_overall(held_out, **made_of)
        objectives, found_scales = with_overall(objectives), scales_of([*train, *held_out])
        score_weights = overall_weights(objectives)

    def part(name: str, chosen_records: list[PreferenceRecord]) -> Part:
        if not chosen_records:
            return Part()
        try:
            pairs, report = build_pairs(
                chosen_records,
                objectives=objectives,
                scales=found_scales,
                weights=score_weights,
                strategy=strategy,
                pairs_per_prompt=pairs_per_prompt,
                orientation=orientation,
            )
        except DataError as error:
            raise DataError(f"{name} data: {error}") from None
        return Part(chosen_records, pairs, report)

    return Inputs(part("training", train), part("evaluation", held_out), found_scales, left_out)
