"""Records as rows of a form.

    grouped_row(record)    one row of the grouped form; of a `RawRecord` too, with whatever it scores in numbers
    trl_rows(record)       rows of the TRL form: one per pair, the better response chosen

Both carry the id, the scales and the record's other fields, so that reading them gives the same prompts, texts, scores
and scales. TRL rows are conversational (lists of messages), the form that TRL puts through a chat template. Pairs are
those of `amopo.data.pairs`: ties and identical texts make none.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from amopo.data.pairs import build_pairs
from amopo.data.readers.raw import RawRecord
from amopo.data.scales import as_scales
from amopo.data.schema import DataError, Message, PreferenceRecord, Response, is_finite_number

TARGETS = ("grouped", "trl")


def grouped_row(record: PreferenceRecord | RawRecord) -> dict[str, Any]:
    """The record as one row, without an id and scales where a raw one has none."""
    responses = [
        {"text": r.text, "scores": {name: value for name, value in r.scores.items() if is_finite_number(value)}}
        for r in record.responses
    ]
    row: dict[str, Any] = {} if record.id is None else {"id": record.id}
    row["prompt"] = record.prompt if isinstance(record, RawRecord) else _prompt(record.prompt)
    row["responses"] = responses
    if scales := _scales(record):
        row["scales"] = scales
    return _with_extra(row, record)


def trl_rows(record: PreferenceRecord, *, strategy: str = "best_worst") -> list[dict[str, Any]]:
    """The record's pairs over the objectives that it was read with; none where responses tie or are the same."""
    try:
        pairs, _ = build_pairs([record], objectives=list(record.scales), strategy=strategy)
    except DataError:  # the reader has checked texts and scores, so this says that there is no pair
        return []
    rows = []
    for pair in pairs:
        row = {
            "id": pair.id,
            "prompt": [dict(message) for message in pair.prompt],
            "chosen": _answer(pair.chosen),
            "rejected": _answer(pair.rejected),
            "chosen_scores": dict(pair.chosen.scores),
            "rejected_scores": dict(pair.rejected.scores),
            "scales": _scales(record),
        }
        rows.append(_with_extra(row, record))
    return rows


def _prompt(messages: Sequence[Message]) -> str | list[dict[str, str]]:
    """One user message as its text, which reads as the same."""
    if len(messages) == 1 and messages[0]["role"] == "user":
        return messages[0]["content"]
    return [dict(message) for message in messages]


def _answer(response: Response) -> list[dict[str, str]]:
    return [{"role": "assistant", "content": response.text}]


def _scales(record: PreferenceRecord | RawRecord) -> dict[str, list[float]]:
    return {name: [scale.low, scale.high] for name, scale in as_scales(record.scales).items()}


def _with_extra(row: dict[str, Any], record: PreferenceRecord | RawRecord) -> dict[str, Any]:
    if taken := sorted(row.keys() & record.extra.keys()):
        place = "" if isinstance(record, RawRecord) else f"{record.label}: "
        raise DataError(f"{place}its field {taken[0]!r} would overwrite what this form writes; rename it")
    return {**row, **record.extra}
