"""The grouped form: one row per prompt, with all its responses.

    {"id", "prompt", "responses": [{"text", "scores": {objective: number}}, ...], "scales": {objective: [low, high]}}

`id` and `scales` are optional.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from amopo.data.readers.raw import RawRecord, RawResponse, others, require
from amopo.data.schema import DataError
from amopo.data.sources.source import Row

FIELDS = '"prompt" and "responses"'


def matches(row: Mapping[str, Any]) -> bool:
    return "responses" in row


def read_row(numbered: Row) -> RawRecord:
    number, row = numbered
    require(row, ("prompt", "responses"), "the row")
    if not isinstance(row["responses"], list):
        raise DataError(f'"responses" must be a list, but is {type(row["responses"]).__name__}')
    responses = []
    for position, response in enumerate(row["responses"], start=1):
        name = f"response {position}"
        if not isinstance(response, dict):
            raise DataError(f'{name} must be an object with "text" and "scores"')
        require(response, ("text", "scores"), name)
        if not isinstance(response["scores"], dict):
            raise DataError(f"the scores of {name} must map each objective to a number")
        responses.append(RawResponse(number, name, response["text"], response["scores"]))
    extra = others(row, "id", "prompt", "responses", "scales")
    return RawRecord([numbered], row["prompt"], responses, row.get("id"), row.get("scales"), extra)
