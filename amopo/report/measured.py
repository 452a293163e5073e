"""What a run has measured before and after training, out of its `metrics.json`.

Contract
--------
`preferences_of`, `scores_of`, `summary_of` and `samples_of` take the parsed file and give what a report shows of it.
Nothing is trusted: what is missing or has another shape is left out, and the report says that it is absent. `number`
reads a logged number; `dict_at(value, *keys)` a mapping inside mappings, empty if there is none.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from amopo.report.changes import Change, Section, preference_sections

MARGINS = "rewards/margins/"


@dataclass(frozen=True)
class Sample:
    """A prompt and what the model wrote before and after training; None where one is missing."""

    prompt: str
    before: str | None
    after: str | None
    before_scores: Mapping[str, float] = field(default_factory=dict)
    after_scores: Mapping[str, float] = field(default_factory=dict)


def number(value: Any) -> float | None:
    """A logged number; NaN and infinity may stand there as text. None for what is no number."""
    if isinstance(value, bool) or value is None:
        return None
    if isinstance(value, str) and value.lower().lstrip("+-") not in ("nan", "inf", "infinity"):
        return None
    try:
        return float(value)
    except (TypeError, ValueError, OverflowError):
        return None


def dict_at(value: Any, *keys: str) -> dict[str, Any]:
    for key in keys:
        value = value.get(key) if isinstance(value, Mapping) else None
    return dict(value) if isinstance(value, Mapping) else {}


def preferences_of(metrics: Mapping[str, Any], objectives: Sequence[str]) -> list[Section]:
    """Accuracies and margins on held-out pairs, of the objectives that were measured both times."""
    before, after = (numbers(dict_at(metrics, "preferences", when)) for when in ("before", "after"))
    kept = [name for name in objectives if MARGINS + name in before and MARGINS + name in after]
    keys = ("rewards/margins", "rewards/accuracies")
    if not kept or not all(key in found for key in keys for found in (before, after)):
        return []
    kept = [name for name in kept if all(f"rewards/accuracies/{name}" in found for found in (before, after))]
    return preference_sections(before, after, kept)


def numbers(found: Mapping[str, Any]) -> dict[str, float]:
    return {key: value for key, raw in found.items() if (value := number(raw)) is not None}


def scores_of(metrics: Mapping[str, Any], objectives: Sequence[str]) -> dict[str, Change]:
    before, after = (dict_at(metrics, "generation", when, "drawn", "plain") for when in ("before", "after"))
    found = {}
    for name in (*objectives, "mean"):
        old, new = numbers(dict_at(before, name)), numbers(dict_at(after, name))
        if "mean" in old and "mean" in new:
            found[name] = Change(name, old["mean"], new["mean"], old.get("error"), new.get("error"))
    return found


def summary_of(metrics: Mapping[str, Any]) -> list[Section]:
    """The tables that the demo writes itself."""
    sections = []
    for section in metrics.get("summary") if isinstance(metrics.get("summary"), list) else []:
        rows = section.get("changes") if isinstance(section, Mapping) else None
        changes = []
        for row in rows if isinstance(rows, list) else []:
            ends = [number(row.get(key)) if isinstance(row, Mapping) else None for key in ("before", "after")]
            if None not in ends:
                errors = [number(row.get(key)) for key in ("before_error", "after_error")]
                digits = row.get("digits") if row.get("digits") in range(7) else 2
                changes.append(Change(str(row.get("name")), *ends, *errors, digits, bool(row.get("signed"))))
        if changes:
            sections.append(Section(str(section.get("title", "")), changes))
    return sections


def samples_of(metrics: Mapping[str, Any]) -> list[Sample]:
    """Generations before and after, joined by their prompt: `samples`, or the demo's examples."""
    if isinstance(metrics.get("samples"), Mapping):
        pair = [metrics["samples"].get(when) for when in ("before", "after")]
    else:
        pair = [dict_at(metrics, "generation", when).get("examples") for when in ("before", "after")]
    found: list[dict[str, Mapping[str, Any]]] = []
    for rows in pair:
        rows = [row for row in rows if isinstance(row, Mapping)] if isinstance(rows, list) else []
        # the same prompt may come twice; what follows the prompt is its place among its equals
        keyed: dict[Any, Mapping[str, Any]] = {}
        counts: dict[str, int] = {}
        for row in rows:
            prompt = str(row.get("prompt", ""))
            counts[prompt] = counts.get(prompt, 0) + 1
            keyed[prompt, counts[prompt]] = row
        found.append(keyed)
    before, after = found
    samples = []
    for key in dict.fromkeys([*before, *after]):
        old, new = before.get(key, {}), after.get(key, {})
        texts = [None if row.get("response") is None else str(row["response"]) for row in (old, new)]
        samples.append(Sample(key[0], *texts, numbers(dict_at(old, "scores")), numbers(dict_at(new, "scores"))))
    return samples
