"""HelpSteer2's own rows: one row per response; consecutive rows with one prompt belong together.

    {"prompt", "response", "helpfulness": 3, "correctness": 4, ...}

Prompts of several turns carry the data set's turn markers (see `amopo.data.prompts.split_turns`). Every field besides
prompt and response can be an objective; the form declares the scale of HelpSteer2's own five. At most one prompt's rows
are held.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from amopo.data.prompts import split_turns
from amopo.data.readers.raw import RawRecord, RawResponse, others, require
from amopo.data.scales import known_scales
from amopo.data.schema import DataError
from amopo.data.sources.source import Fail, Row, Source

FIELDS = '"prompt", "response" and one field per objective'


def matches(row: Mapping[str, Any]) -> bool:
    return "response" in row


def read(source: Source, rows: Iterable[Row], fail: Fail) -> Iterator[RawRecord]:
    group: list[Row] = []
    for numbered in rows:
        number, row = numbered
        try:
            require(row, ("prompt", "response"), "the row")
        except DataError as error:
            fail(source.error(str(error), number))
            continue
        if group and group[-1][1]["prompt"] != row["prompt"]:
            yield from _record(source, group, fail)
            group = []
        group.append(numbered)
    if group:
        yield from _record(source, group, fail)


def _record(source: Source, group: list[Row], fail: Fail) -> Iterator[RawRecord]:
    responses = [
        RawResponse(number, "the response", row["response"], others(row, "prompt", "response")) for number, row in group
    ]
    try:
        prompt = split_turns(group[0][1]["prompt"])
    except DataError as error:
        fail(source.error(str(error), group[0][0]))
    else:
        scored = [name for response in responses for name in response.scores]
        yield RawRecord(group, prompt, responses, scales=known_scales(scored))
