"""Preference records from a file.

    read_records(path, objectives=[...], scales=None, format="auto") -> list[PreferenceRecord]

Two formats, told apart by the first row:
  "grouped"     one line per prompt: {"id", "prompt", "responses": [{"text", "scores": {objective: number}}], "scales"}
  "helpsteer2"  one line per response: {"prompt", "response", objective: number, ...}; consecutive lines share a prompt
`id` and `scales` are optional. Every response needs a score on every named objective, within its scale; other scores
are not read. Whatever is wrong raises `DataError` that names the file, the line and the remedy, before anything is
returned.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from os import PathLike
from typing import Any

from amopo.data.jsonl import JsonLine, read_json_lines
from amopo.data.prompts import parse_prompt, split_turns
from amopo.data.scales import ScaleLike, as_scales, check_objectives, resolve_scales
from amopo.data.schema import DataError, PreferenceRecord, Response, Scale, check_text, is_finite_number
from amopo.packing.sample import sample_id_to_int64

FORMATS = ("auto", "grouped", "helpsteer2")


@dataclass(frozen=True)
class _RawResponse:
    line: int
    name: str
    text: object
    scores: Mapping[str, object]


@dataclass(frozen=True)
class _RawRecord:
    line: int
    prompt: object
    responses: list[_RawResponse]
    id: object = None
    scales: object = None
    extra: Mapping[str, Any] = field(default_factory=dict)


def read_records(
    path: str | PathLike[str],
    *,
    objectives: Sequence[str],
    scales: Mapping[str, ScaleLike] | None = None,
    format: str = "auto",
) -> list[PreferenceRecord]:
    """Every record of a preference file, checked."""
    objectives, given = check_objectives(objectives), as_scales(scales)
    if format not in FORMATS:
        raise ValueError(f"unknown format {format!r}; known: {', '.join(FORMATS)}")
    rows = read_json_lines(path)
    if format == "auto":
        format = _detect_format(rows[0], path)
    raw_records = list(_FORMATS[format](rows, path))
    _check_objectives_are_scored(raw_records, objectives, path)
    records, line_of_id = [], {}
    for raw in raw_records:
        record = _build(raw, objectives, given, path)
        # As text: 1 and "1" would name the same sample in reports and in the ids of pairs.
        if str(record.id) in line_of_id:
            raise DataError(
                f"the id {record.id!r} stands on line {line_of_id[str(record.id)]} already; ids must be unique",
                file=path,
                line=raw.line,
            )
        line_of_id[str(record.id)] = raw.line
        records.append(record)
    return records


def _detect_format(first: JsonLine, path: object) -> str:
    line, row = first
    if "responses" in row:
        return "grouped"
    if "response" in row:
        return "helpsteer2"
    raise DataError(
        f"cannot tell the format from the fields {', '.join(map(repr, row)) or '(none)'}; a row needs "
        '"prompt" and "responses" (grouped), or "prompt", "response" and one field per objective (HelpSteer2)',
        file=path,
        line=line,
    )


def _read_grouped(rows: list[JsonLine], path: object) -> Iterator[_RawRecord]:
    for line, row in rows:
        _require(row, ("prompt", "responses"), "the row", path, line)
        if not isinstance(row["responses"], list):
            raise DataError(
                f'"responses" must be a list, but is {type(row["responses"]).__name__}', file=path, line=line
            )
        responses = []
        for number, response in enumerate(row["responses"], start=1):
            name = f"response {number}"
            if not isinstance(response, dict):
                raise DataError(f'{name} must be an object with "text" and "scores"', file=path, line=line)
            _require(response, ("text", "scores"), name, path, line)
            if not isinstance(response["scores"], dict):
                raise DataError(f"the scores of {name} must map each objective to a number", file=path, line=line)
            responses.append(_RawResponse(line, name, response["text"], response["scores"]))
        extra = {key: value for key, value in row.items() if key not in ("id", "prompt", "responses", "scales")}
        yield _RawRecord(line, row["prompt"], responses, row.get("id"), row.get("scales"), extra)


def _read_helpsteer2(rows: list[JsonLine], path: object) -> Iterator[_RawRecord]:
    for line, row in rows:
        _require(row, ("prompt", "response"), "the row", path, line)
    for prompt, group in groupby(rows, key=lambda numbered: numbered[1]["prompt"]):
        responses = []
        for line, row in group:
            scores = {key: value for key, value in row.items() if key not in ("prompt", "response")}
            responses.append(_RawResponse(line, "the response", row["response"], scores))
        yield _RawRecord(responses[0].line, split_turns(prompt), responses)


_FORMATS = {"grouped": _read_grouped, "helpsteer2": _read_helpsteer2}


def _require(row: Mapping[str, object], keys: Sequence[str], name: str, path: object, line: int) -> None:
    for key in keys:
        if key not in row:
            raise DataError(
                f'{name} has no "{key}"; it has {", ".join(map(repr, row)) or "nothing"}', file=path, line=line
            )


def _check_objectives_are_scored(raw_records: list[_RawRecord], objectives: Sequence[str], path: object) -> None:
    known = list(dict.fromkeys(name for raw in raw_records for response in raw.responses for name in response.scores))
    for objective in objectives:
        if objective not in known:
            raise DataError(
                f"no response has a score for objective {objective!r}; objectives in the file: "
                f"{', '.join(known) or 'none'}",
                file=path,
            )


def _build(raw: _RawRecord, objectives: Sequence[str], given: Mapping[str, Scale], path: object) -> PreferenceRecord:
    try:
        prompt = parse_prompt(raw.prompt)
        scales = resolve_scales(objectives, given=given, declared=as_scales(raw.scales))
        record_id = _check_id(raw.id, default=f"line-{raw.line}")
        if len(raw.responses) < 2:
            raise DataError(f"the prompt has {len(raw.responses)} response(s); at least 2 are needed to compare")
    except DataError as error:
        raise DataError(str(error), file=path, line=raw.line) from None
    responses = tuple(_build_response(response, scales, path) for response in raw.responses)
    return PreferenceRecord(record_id, prompt, responses, f"{path}:{raw.line}", scales, raw.extra)


def _check_id(value: object, *, default: str) -> int | str:
    if value is None:
        return default
    try:
        sample_id_to_int64(value)
    except (TypeError, ValueError) as error:
        raise DataError(str(error)) from None
    return value


def _build_response(raw: _RawResponse, scales: Mapping[str, Scale], path: object) -> Response:
    def error(message: str) -> DataError:
        return DataError(message, file=path, line=raw.line)

    scores = {}
    for objective, scale in scales.items():
        if objective not in raw.scores:
            raise error(f"{raw.name} has no score for objective {objective!r}; add it or leave the objective out")
        score = raw.scores[objective]
        if not is_finite_number(score):
            raise error(f"the score of {raw.name} for objective {objective!r} is {score!r}; a finite number is needed")
        if score not in scale:
            raise error(
                f"the score of {raw.name} for objective {objective!r} is {score}, outside its scale {scale}; "
                f"correct the score, or declare the scale, e.g. --scales {objective}=low:high"
            )
        scores[objective] = float(score)
    try:
        return Response(check_text(raw.text, f"the text of {raw.name}"), scores)
    except DataError as problem:
        raise error(str(problem)) from None
