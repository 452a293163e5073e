"""What a preference file holds, before training on it.

`inspect_file(path, ...) -> Inspection`: counts, scales and where they come from, ties and conflicts over all records;
lengths and the cost of layouts over a sample of `sample` records. Bad rows are counted and the first few named; they do
not end the reading. Two passes; in memory the sample, and at most 48 bytes per record for ids and prompts.

Without `objectives`, those that the file scores. An objective whose scale is not known is taken to go from its smallest
to its largest score, and marked so: training on it needs the scale declared.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from os import PathLike

from amopo.data.agreement import Agreement
from amopo.data.layouts import LayoutCost, layout_costs
from amopo.data.lengths import LengthSummary, Measure, WordMeasure, samples_of_pairs, summarize_lengths
from amopo.data.pairs import build_pairs
from amopo.data.readers import ReadReport, ScoreScan, all_objectives, iter_records, scan_scores
from amopo.data.readers.forms import OnRows
from amopo.data.scales import ScaleLike, as_scales, check_objectives
from amopo.data.schema import DataError, PreferenceRecord, Scale
from amopo.data.seen import SeenNames
from amopo.data.sources.steady import open_steady
from amopo.data.split import prompt_rank
from amopo.data.templates import Template

NAMED = 5  # bad rows


@dataclass
class ScoreSummary:
    """Scores of one objective. `origin` of its scale: given, declared (by the file or its form), or seen."""

    scale: Scale
    origin: str
    count: int = 0
    low: float = float("inf")
    high: float = float("-inf")
    total: float = 0.0

    @property
    def mean(self) -> float:
        return self.total / self.count if self.count else float("nan")

    def add(self, score: float) -> None:
        self.count, self.total = self.count + 1, self.total + score
        self.low, self.high = min(self.low, score), max(self.high, score)


@dataclass
class BadRows:
    count: int = 0
    first: list[str] = field(default_factory=list)

    def add(self, error: DataError) -> None:
        self.count += 1
        if len(self.first) < NAMED:
            self.first.append(str(error))


@dataclass
class Costs:
    """Lengths and layouts of sampled pairs. `problem`: why there are none."""

    unit: str
    pairs: int = 0
    unusable: BadRows = field(default_factory=BadRows)
    lengths: dict[str, LengthSummary] = field(default_factory=dict)
    layouts: list[LayoutCost] = field(default_factory=list)
    problem: str = ""


@dataclass
class Inspection:
    """`sampled` of the records are behind `costs`."""

    file: str
    scan: ScoreScan
    report: ReadReport
    bad: BadRows
    scores: dict[str, ScoreSummary]
    agreement: Agreement
    distinct_prompts: int
    responses_per_prompt: dict[int, int]
    sampled: int
    costs: Costs


def inspect_file(
    path: str | PathLike[str],
    *,
    objectives: Sequence[str] | None = None,
    scales: Mapping[str, ScaleLike] | None = None,
    format: str = "auto",
    template: str | Template = "rubric",
    measure: Measure | None = None,
    sample: int = 1000,
    seed: int = 0,
    on_rows: OnRows | None = None,
) -> Inspection:
    """Reads the file twice. `measure` counts lengths: words by default."""
    if sample < 1:
        raise ValueError(f"sample must be at least 1, but is {sample!r}")
    given, source = as_scales(scales), open_steady(path)
    scan = scan_scores(source, format=format, on_error=lambda error: None, on_rows=on_rows)
    names = all_objectives(scan, source.name) if objectives is None else check_objectives(objectives)
    scores = {name: _summary(name, scan, given) for name in names}
    bad, report, agreement, prompts = BadRows(), ReadReport(), Agreement(names), SeenNames()
    sizes: Counter[int] = Counter()
    kept: list[tuple[int, PreferenceRecord]] = []
    rng = random.Random(seed)
    seen = {name: summary.scale for name, summary in scores.items() if summary.origin == "seen"}
    records = iter_records(
        source,
        objectives=names,
        scales={**seen, **given},
        format=scan.form,
        report=report,
        on_error=bad.add,
        on_rows=on_rows,
    )
    for number, record in enumerate(records):
        if problem := _other_scale(record, scores):
            bad.add(problem)
            continue
        prompts.add_hash(prompt_rank(record.prompt, seed=0))
        sizes[len(record.responses)] += 1
        agreement.add(record)
        for name, summary in scores.items():
            for response in record.responses:
                summary.add(response.scores[name])
        place = number if len(kept) < sample else rng.randrange(number + 1)
        if len(kept) < sample:
            kept.append((number, record))
        elif place < sample:
            kept[place] = (number, record)
    chosen = [record for _, record in sorted(kept, key=lambda item: item[0])]
    costs = _costs(chosen, scores, measure or WordMeasure(), template)
    return Inspection(
        str(path), scan, report, bad, scores, agreement, len(prompts), dict(sorted(sizes.items())), len(chosen), costs
    )


def _summary(name: str, scan: ScoreScan, given: Mapping[str, Scale]) -> ScoreSummary:
    for origin, scales in (("given", given), ("declared", scan.declared)):
        if name in scales:
            return ScoreSummary(scales[name], origin)
    found = scan.ranges.get(name)
    if found is None or not found.count:  # the reader says which names there are
        return ScoreSummary(Scale(0, 1), "seen")
    return ScoreSummary(Scale(found.low, found.high if found.high > found.low else found.low + 1), "seen")


def _other_scale(record: PreferenceRecord, scores: Mapping[str, ScoreSummary]) -> DataError | None:
    for name, scale in record.scales.items():
        if scale != scores[name].scale:
            return DataError(
                f"{record.label} scores {name!r} on {scale}, but the records before it on {scores[name].scale}; "
                "one objective has one scale"
            )
    return None


def _costs(
    records: Sequence[PreferenceRecord],
    scores: Mapping[str, ScoreSummary],
    measure: Measure,
    template: str | Template,
) -> Costs:
    costs = Costs(measure.unit)
    scales = {name: summary.scale for name, summary in scores.items()}
    if not records:
        costs.problem = "no record could be read"
        return costs
    try:
        pairs, _ = build_pairs(records, objectives=list(scales), scales=scales)
    except DataError as error:
        costs.problem = str(error)
        return costs
    samples, errors = samples_of_pairs(pairs, measure, objectives=list(scales), scales=scales, template=template)
    for error in errors:
        costs.unusable.add(error)
    if not samples:
        costs.problem = f"no pair could be measured; {costs.unusable.first[0]}"
        return costs
    usable = {sample.id for sample in samples}
    costs.pairs = len(samples)
    costs.lengths = {
        "prompt alone": summarize_lengths([len(measure.prompt(pair.prompt)) for pair in pairs if pair.id in usable]),
        "prompt with template": summarize_lengths([max(map(len, sample.prompts)) for sample in samples]),
        "chosen response": summarize_lengths([len(sample.chosen) for sample in samples]),
        "rejected response": summarize_lengths([len(sample.rejected) for sample in samples]),
    }
    costs.layouts = layout_costs(samples)
    return costs
