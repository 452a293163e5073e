"""UltraFeedback's own rows: one row per instruction, with completions that are rated on four aspects.

    {"instruction", "completions": [{"response", "annotations": {"helpfulness": {"Rating": "4", ...}, ...}}, ...]}

Ratings are text from "1" to "5"; the form declares that scale. A response without a rating ("N/A", or none) on an
objective that is asked for is left out, and so is an instruction with fewer than two responses left; both are counted.
Not read: the system prompts that the completions were made with, which differ from one to the next, overall scores,
critiques, rationales.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from amopo.data.readers.raw import UNRATED, RawRecord, RawResponse, declared, others, require
from amopo.data.readers.released import as_number
from amopo.data.schema import DataError
from amopo.data.sources.source import Row

FIELDS = '"instruction" and "completions" with "annotations"'
ASPECTS = ("instruction_following", "truthfulness", "honesty", "helpfulness")
SCALE = (1, 5)


def matches(row: Mapping[str, Any]) -> bool:
    return "completions" in row


def read_row(numbered: Row) -> RawRecord:
    number, row = numbered
    require(row, ("instruction", "completions"), "the row")
    if not isinstance(row["completions"], list):
        raise DataError(f'"completions" must be a list, but is {type(row["completions"]).__name__}')
    responses = []
    for position, completion in enumerate(row["completions"], start=1):
        name = f"completion {position}"
        if not isinstance(completion, Mapping):
            raise DataError(f'{name} must be an object with "response" and "annotations"')
        require(completion, ("response", "annotations"), name)
        if not isinstance(completion["annotations"], Mapping):
            raise DataError(f'the "annotations" of {name} must map each aspect to its "Rating"')
        scores = {aspect: _rating(note, aspect, name) for aspect, note in completion["annotations"].items()}
        responses.append(RawResponse(number, name, completion["response"], scores))
    scales = dict.fromkeys((*ASPECTS, *(name for response in responses for name in response.scores)), list(SCALE))
    return RawRecord(
        rows=[numbered],
        prompt=row["instruction"],
        responses=responses,
        id=row.get("id"),
        scales={**scales, **declared(row.get("scales"))},
        extra=others(row, "id", "instruction", "completions", "scales"),
        unrated=True,
    )


def _rating(note: object, aspect: str, name: str) -> object:
    if not isinstance(note, Mapping):
        raise DataError(f'the annotation of {name} for {aspect!r} must be an object with a "Rating"')
    rating = note.get("Rating")
    if rating is None or (isinstance(rating, str) and rating.strip().upper() in ("N/A", "NA", "NONE", "")):
        return UNRATED
    return as_number(rating)
