"""`amopo data inspect`: what a preference file holds, and what training on it will take.

Counts, scales, ties and conflicts between objectives, bad rows; lengths, and the tokens of the 2K sequences of a pair
when padded, packed, and packed with sharing. Lengths are tokens with `--tokenizer`, else words. `--json` prints one
JSON object. Bad rows do not end it: they are counted, the first few are named, and the exit status is 0.
"""

from __future__ import annotations

import dataclasses
import json
import math
import sys
from collections.abc import Sequence
from typing import Any

from amopo.cli.console import Console
from amopo.cli.counter import counter
from amopo.cli.data_options import check_paths, score_options, source_options
from amopo.cli.errors import UsageError
from amopo.cli.inputs import read_scales
from amopo.cli.models import need
from amopo.cli.options import Option, Settings
from amopo.data import get_template
from amopo.data.inspection import Inspection, inspect_file
from amopo.data.lengths import Measure, TokenMeasure, WordMeasure
from amopo.data.schema import show_number

DESCRIPTION = "What a preference file holds: counts, scales, lengths, what sharing saves, ties, conflicts, bad rows."


def options() -> list[Option]:
    return [
        *source_options(),
        *score_options(),
        Option("tokenizer", str | None, "folder or Hub name; lengths in its tokens", default=None, metavar="M"),
        Option("template", str, "how an objective is written into a prompt", default="rubric"),
        Option("sample", int, "prompts whose lengths are measured, drawn by a fixed seed", default=1000),
        Option("json", bool, "print one JSON object instead of text", default=False),
    ]


def run(settings: Settings) -> None:
    console = Console(quiet=settings.quiet)
    (path,) = check_paths(settings, "FILE")
    get_template(settings.template)
    if settings.sample < 1:
        raise UsageError(f"--sample: at least 1 is needed, not {settings.sample}")
    measure = WordMeasure() if settings.tokenizer is None else _load_measure(settings.tokenizer)
    with counter(console, "rows", plain_to=sys.stderr if settings.json else None) as count:
        found = inspect_file(
            path,
            objectives=settings.objectives,
            scales=read_scales(settings.scales),
            format=settings.format,
            template=settings.template,
            measure=measure,
            sample=settings.sample,
            on_rows=count,
        )
    if settings.json:
        print(json.dumps(as_json(found), indent=2, ensure_ascii=False))
    else:
        print("\n".join(as_lines(found, settings.template)))


def _load_measure(name: str) -> Measure:
    need("transformers", "hf")
    from transformers import AutoTokenizer

    try:
        return TokenMeasure(AutoTokenizer.from_pretrained(name))
    except (OSError, ValueError, KeyError) as error:
        reason = " ".join(str(error).split())
        raise UsageError(f"--tokenizer: cannot use {name}: {reason:.200}") from error


def as_json(found: Inspection) -> dict[str, Any]:
    agreement, names = found.agreement, list(found.scores)
    return {
        "file": found.file,
        "form": found.scan.form,
        "prompts": found.report.records,
        "distinct_prompts": found.distinct_prompts,
        "responses": found.report.responses,
        "responses_per_prompt": {str(size): count for size, count in found.responses_per_prompt.items()},
        "unrated": {"responses": found.report.responses_unrated, "prompts": found.report.records_unrated},
        "bad_rows": dataclasses.asdict(found.bad),
        "objectives": {
            name: {
                "scale": [summary.scale.low, summary.scale.high],
                "scale_origin": summary.origin,
                "scores": summary.count,
                "lowest": summary.low if summary.count else None,
                "highest": summary.high if summary.count else None,
                "mean": None if math.isnan(summary.mean) else summary.mean,
            }
            for name, summary in found.scores.items()
        },
        "comparisons": agreement.comparisons,
        "identical_texts": agreement.identical,
        "tied_on_all": agreement.tied_everywhere,
        "in_conflict": agreement.in_conflict,
        "ties": {name: agreement.conflicts[k][k] for k, name in enumerate(names)},
        "conflicts": {
            name: {other: agreement.conflicts[j][k] for k, other in enumerate(names) if k != j}
            for j, name in enumerate(names)
        },
        "sampled_prompts": found.sampled,
        **{key: value for key, value in dataclasses.asdict(found.costs).items()},
    }


def as_lines(found: Inspection, template: str) -> list[str]:
    report, bad = found.report, found.bad
    per_prompt = ", ".join(f"{size} ({count} prompts)" for size, count in found.responses_per_prompt.items())
    if len(found.responses_per_prompt) == 1:
        per_prompt = str(next(iter(found.responses_per_prompt)))
    lines = [f"{found.file}: {found.scan.form}", ""]
    lines.append(f"prompts      {report.records} ({found.distinct_prompts} distinct)")
    lines.append(f"responses    {report.responses}; per prompt: {per_prompt or 'none'}")
    if not report.is_complete:
        lines.append(
            f"left out     {report.responses_unrated} responses without a rating (N/A), "
            f"{report.records_unrated} prompts with fewer than two rated ones"
        )
    lines.append(f"bad rows     {bad.count}{', the first of them:' if bad.count > len(bad.first) else ''}")
    lines += [f"  {text}" for text in bad.first]
    lines += ["", *_scores(found), "", *_agreement(found), "", *_costs(found, template)]
    return lines


def _scores(found: Inspection) -> list[str]:
    rows = [("objective", "scale", "which is", "scores", "lowest", "highest", "mean")]
    for name, summary in found.scores.items():
        numbers = [summary.low, summary.high, summary.mean] if summary.count else []
        shown = [show_number(number) for number in numbers] or ["-"] * 3
        rows.append((name, str(summary.scale), summary.origin, str(summary.count), *shown))
    lines = table(rows, left=3)
    if found.scan.other_fields:
        lines.append(f"no objectives, since they hold no numbers: {', '.join(map(ascii, found.scan.other_fields))}")
    unknown = [name for name, summary in found.scores.items() if summary.origin == "seen"]
    if unknown:
        lines.append(
            f"seen: from the scores themselves; training needs it declared, e.g. --scales {unknown[0]}=low:high"
        )
    return lines


def _agreement(found: Inspection) -> list[str]:
    agreement, names = found.agreement, list(found.scores)
    total = agreement.comparisons
    lines = [
        f"{total} comparisons of two responses to a prompt ({agreement.identical} more with the same text); "
        f"{agreement.in_conflict} in conflict, {agreement.tied_everywhere} tied on all objectives"
    ]
    if not total:
        return lines
    lines.append("how often two objectives prefer different responses; on the diagonal: how often one ties")
    rows = [("", *names)]
    for j, name in enumerate(names):
        counts = agreement.conflicts[j]
        rows.append((name, *(f"{'tie ' if j == k else ''}{count}" for k, count in enumerate(counts))))
    return [*lines, *table(rows, left=1)]


def _costs(found: Inspection, template: str) -> list[str]:
    costs = found.costs
    if costs.problem:
        return [f"lengths and layouts: not measured: {costs.problem}"]
    unit = costs.unit
    which = "all" if found.sampled == found.report.records else f"{found.sampled} sampled"
    how = "" if unit == "tokens" else " (no --tokenizer was named)"
    lines = [f"lengths in {unit}{how}: {costs.pairs} best-worst pairs of {which} prompts, template {template}"]
    rows = [("", "least", "median", "mean", "95 %", "most")]
    for name, length in costs.lengths.items():
        numbers = (length.least, length.median, f"{length.mean:.1f}", length.most_but_5, length.most)
        rows.append((name, *map(str, numbers)))
    lines += [*table(rows, left=1), "", f"the 2K = {2 * len(found.scores)} sequences of a pair, in {unit}"]
    rows = [("", f"{unit} per pair", "against packed", "padding")]
    for cost in costs.layouts:
        rows.append((cost.layout, f"{cost.per_sample:.1f}", f"{cost.ratio:.2f}", f"{cost.padding:.0%}"))
    lines += table(rows, left=1)
    if costs.unusable.count:
        lines += ["", f"pairs that cannot be tokenised: {costs.unusable.count}"]
        lines += [f"  {text}" for text in costs.unusable.first]
    return lines


def table(rows: Sequence[Sequence[str]], *, left: int) -> list[str]:
    """Aligned columns under the first row; the first `left` of them to the left."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = []
    for row in rows:
        cells = [
            f"{cell:<{width}}" if position < left else f"{cell:>{width}}"
            for position, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        lines.append("  ".join(cells).rstrip())
    return lines
