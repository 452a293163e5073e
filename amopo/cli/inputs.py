"""The preference data of a command, read and checked before anything is loaded or trained.

`read_inputs(...)` -> `Inputs`: the records for training and for evaluation, their pairs, the scales, and lines that say
what was read, skipped and held out. Evaluation data is a file of its own, or a part of the prompts held out by a seed.

Records and pairs are not kept: they are read from the file again whenever they are gone through (`amopo.data.stream`).
`read_inputs` reads everything twice: what is wrong with any row, the scales and the ranks of the prompts show in the
first pass; in the second the pairs are counted, and what decides their tokens is summed up. In memory: 8 bytes per
prompt, three times that while they are sorted, and the bytes per id of `iter_records`. `Inputs.in_memory()` gives
lists.
"""

from __future__ import annotations

from array import array
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from amopo.cli.errors import UsageError
from amopo.data import (
    DataError,
    Pair,
    PairReport,
    PreferenceRecord,
    ReadReport,
    Scale,
    overall_weights,
    parse_scales,
    with_overall,
)
from amopo.data.content import PairContent
from amopo.data.overall import OVERALL_NAME, OVERALL_SCALE, OverallScore
from amopo.data.pairs import PairMaker, weight_shares
from amopo.data.readers.forms import OnRows
from amopo.data.scales import AgreedScales, as_scales, check_objectives
from amopo.data.split import HeldOut, check_eval_fraction, prompt_rank
from amopo.data.stream import PairStream, RecordPart, RecordStream, Reiterable


@dataclass
class Part:
    records: Reiterable[PreferenceRecord] = ()
    pairs: Reiterable[Pair] = ()
    report: PairReport | None = None

    def in_memory(self) -> Part:
        return replace(self, records=list(self.records), pairs=list(self.pairs))


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

    def in_memory(self) -> Inputs:
        """The same with lists, for data that is gone through often, or by index."""
        return replace(self, train=self.train.in_memory(), evaluation=self.evaluation.in_memory())


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
    on_rows: OnRows | None = None,
) -> Inputs:
    """What `--data` (and `--eval-data`) gives; `on_rows(n)` is told how many rows of a pass are read."""
    weight_shares(score_weights, check_objectives(objectives))
    check_eval_fraction(eval_fraction)
    left_out: list[str] = []
    agreed = AgreedScales()
    ranks = array("q")
    is_split = eval_data is None and eval_fraction > 0

    def first_pass(path: str) -> RecordStream:
        stream, report = RecordStream(path, objectives=objectives, scales=scales, format=format), ReadReport()
        for record in stream.read(report=report, on_rows=on_rows):
            agreed.add(record)
            if is_split:
                ranks.append(prompt_rank(record.prompt, seed=seed))
        if not report.is_complete:
            left_out.append(f"{path}: {report}")
        return stream

    streams = {"training": first_pass(data)}
    if eval_data is not None:
        streams["evaluation"] = first_pass(eval_data)
    try:
        held_out = HeldOut.choose(ranks, eval_fraction=eval_fraction, seed=seed) if is_split else None
    except DataError as error:
        raise DataError(str(error), file=data) from None
    found_scales, change = agreed.scales, None
    if overall:
        change = OverallScore(objectives, scales=found_scales, weights=score_weights).of
        objectives, found_scales = with_overall(objectives), {**found_scales, OVERALL_NAME: OVERALL_SCALE}
        score_weights = overall_weights(objectives)

    def make_maker() -> PairMaker:
        return PairMaker(
            objectives,
            scales=found_scales,
            weights=score_weights,
            strategy=strategy,
            pairs_per_prompt=pairs_per_prompt,
            orientation=orientation,
        )

    def part(name: str) -> Part:
        if name not in makers:
            return Part()
        try:
            report = makers[name].final_report()
        except DataError as error:
            raise DataError(f"{name} data: {error}") from None
        stream = streams.get(name, streams["training"])
        keep = None if held_out is None else lambda record: held_out.holds(record.prompt) == (name == "evaluation")
        records = RecordPart(stream, report.records, keep=keep, change=change)
        pairs = PairStream(records, report.pairs, make_maker=make_maker, content=contents[name])
        return Part(records, pairs, report)

    makers, contents = _second_pass(streams, held_out, change, make_maker, on_rows)
    return Inputs(part("training"), part("evaluation"), found_scales, left_out)


def _second_pass(
    streams: Mapping[str, RecordStream],
    held_out: HeldOut | None,
    change: Callable[[PreferenceRecord], PreferenceRecord] | None,
    make_maker: Callable[[], PairMaker],
    on_rows: OnRows | None,
) -> tuple[dict[str, PairMaker], dict[str, PairContent]]:
    """What has made all pairs of each part, for its report, and what the pairs hold."""
    makers = {name: make_maker() for name in (streams if held_out is None else ("training", "evaluation"))}
    contents = {name: PairContent(maker.objectives) for name, maker in makers.items()}
    for stream_name, stream in streams.items():
        for record in stream.read(on_rows=on_rows):
            is_held_out = held_out is not None and held_out.holds(record.prompt)
            name = "evaluation" if is_held_out else stream_name
            for pair in makers[name].of(record if change is None else change(record)):
                contents[name].add(pair)
    return makers, contents
