"""The form that the authors of AMoPO released: one row per pair, the scores beside the text.

    {"prompt", "chosen": {"response", "helpfulness": "4", ...}, "rejected": {"response", "helpfulness": "2", ...}}

Scores are text or numbers. Every field of a side besides the response can be an objective. Prompts are text, with
HelpSteer2's turn markers where they have several turns, or messages. `id` and `scales` are optional: the form declares
the scale of HelpSteer2's five dimensions, which these data are made of.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from amopo.data.prompts import split_turns
from amopo.data.readers.raw import RawRecord, RawResponse, declared, others, require
from amopo.data.scales import known_scales
from amopo.data.schema import DataError
from amopo.data.sources.source import Row

FIELDS = '"prompt", and "chosen" and "rejected" as objects with "response" and one field per objective'
SIDES = ("chosen", "rejected")


def matches(row: Mapping[str, Any]) -> bool:
    return isinstance(row.get("chosen"), Mapping)


def read_row(numbered: Row) -> RawRecord:
    number, row = numbered
    require(row, ("prompt", *SIDES), "the row")
    responses = []
    for side in SIDES:
        given = row[side]
        if not isinstance(given, Mapping):
            raise DataError(f'"{side}" must be an object with "response" and scores, but is {type(given).__name__}')
        require(given, ("response",), f'"{side}"')
        scores = {name: as_number(value) for name, value in others(given, "response").items()}
        responses.append(RawResponse(number, side, given["response"], scores))
    extra = others(row, "id", "prompt", *SIDES, "scales")
    scored = [name for response in responses for name in response.scores]
    scales = {**known_scales(scored), **declared(row.get("scales"))}
    return RawRecord([numbered], split_turns(row["prompt"]), responses, row.get("id"), scales, extra)


def as_number(value: object) -> object:
    """The number that a text stands for; anything else as it is."""
    if not isinstance(value, str):
        return value
    try:
        return float(value)
    except ValueError:
        return value
