"""Rows of TRL's preference formats as samples of K objectives; the formats stand in `amopo.integrations.trl`.

`tokenize_preferences(dataset, tokenizer, ...)` -> (list of TokenizedSample, TokenizationReport). Whatever a row holds
that is not read raises `DataError` with the row's number. Needs TRL for rows without a prompt column alone.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from amopo.data import DataError, Pair, Response, Scale, TokenizationReport, tokenize_pairs
from amopo.data.prompts import parse_prompt
from amopo.data.scales import as_scales, check_objectives, resolve_scales
from amopo.data.schema import check_text, is_finite_number
from amopo.packing import TokenizedSample

PLAIN = "plain"
# Of an objective whose scale is not declared, since no prompt shows its scores.
_NO_SCALE = Scale(0, 1)
COLUMNS = ("prompt", "chosen", "rejected", "chosen_scores", "rejected_scores", "id")
# Columns of TRL's formats that change a prompt, and are not read here.
_UNREAD = ("tools", "chat_template_kwargs", "image", "images")
_BARE_TEMPLATE = "{% for message in messages %}{{ message['content'] }}{% endfor %}"


def tokenize_preferences(
    dataset: Any,
    tokenizer: Any,
    *,
    objectives: Sequence[str],
    scales: Mapping[str, Any] | None = None,
    template: Any = "rubric",
    max_prompt_length: int = 512,
    max_response_length: int = 512,
    name: str = "dataset",
) -> tuple[list[TokenizedSample], TokenizationReport]:
    """All rows of a TRL preference dataset, called `name` in messages, as samples of K objectives.

    Raises:
        DataError: a row that cannot be used, by its number; TypeError: no dataset with a length.
    """
    if not hasattr(dataset, "__len__") or isinstance(dataset, Mapping | str):
        kind = type(dataset).__name__
        raise TypeError(
            f"{name} must be a datasets.Dataset or a list of rows, got {kind}; batches are planned by length before "
            "training, so take one split, and load a stream first: Dataset.from_list(list(stream))"
        )
    if len(dataset) == 0:
        raise DataError(f"{name} is empty; give at least one row")
    scales = as_scales(scales)
    if template != PLAIN:  # which shows no score
        scales = resolve_scales(check_objectives(objectives), given=scales)
    pairs, plain = [], set()
    for number in range(len(dataset)):
        pair, is_plain = _pair(dataset[number], number, objectives, scales, template, name)
        pairs.append(pair)
        plain.add(is_plain)
    if len(plain) > 1:
        raise DataError(f"{name} mixes plain strings and conversations; use one form for all rows")
    return tokenize_pairs(
        pairs,
        bare_text(tokenizer) if plain == {True} else tokenizer,
        objectives=objectives,
        scales={**dict.fromkeys(objectives, _NO_SCALE), **scales},
        template=template,
        max_prompt_length=max_prompt_length,
        max_response_length=max_response_length,
    )


def bare_text(tokenizer: Any) -> Any:
    """A copy of the tokenizer whose chat template is the bare text, begun with bos where the tokenizer does that."""
    bare = copy.deepcopy(tokenizer)
    adds_bos = tokenizer.bos_token_id is not None and tokenizer("a")["input_ids"][:1] == [tokenizer.bos_token_id]
    bare.chat_template = ("{{ bos_token }}" if adds_bos else "") + _BARE_TEMPLATE
    return bare


def _pair(
    row: Any, number: int, objectives: Sequence[str], scales: Mapping[str, Scale], template: Any, name: str
) -> tuple[Pair, bool]:
    """One row as a pair, and whether its texts are plain strings."""
    place = f"{name}[{number}]"
    if not isinstance(row, Mapping):
        raise DataError(f"{place} must be a mapping, but is {type(row).__name__}")
    for column in ("chosen", "rejected"):
        if column not in row:
            raise DataError(f"{place} has no column {column!r}; it has {', '.join(map(str, row)) or 'none'}")
    if unread := [column for column in _UNREAD if row.get(column)]:
        raise DataError(f"{place} has the column {unread[0]!r}, which is not supported; remove it")
    try:
        if row.get("prompt") is None:
            from trl.data_utils import extract_prompt

            row = {**row, **extract_prompt(dict(row))}
        plain = isinstance(row["prompt"], str)
        prompt = parse_prompt(row["prompt"] if plain else _plain_messages(row["prompt"]))
        chosen, rejected = (
            Response(_text(row[side], side, plain), _scores(row, side, objectives, scales, template))
            for side in ("chosen", "rejected")
        )
    except DataError as error:
        raise DataError(f"{place}: {error}") from None
    identity = row.get("id")
    return Pair(number if identity is None else identity, prompt, chosen, rejected), plain


def _plain_messages(messages: Any) -> Any:
    """Messages without the fields that a Dataset fills with None."""
    if not isinstance(messages, Iterable):
        return messages
    return [
        {key: value for key, value in message.items() if value is not None} if isinstance(message, Mapping) else message
        for message in messages
    ]


def _text(value: Any, side: str, plain: bool) -> str:
    if plain:
        return check_text(value, f"{side!r}")
    messages = _plain_messages(value)
    if isinstance(value, str) or not isinstance(messages, list):
        raise DataError(f"the prompt is a conversation, so {side!r} must be a list with one assistant message")
    if len(messages) != 1 or not isinstance(messages[0], Mapping) or messages[0].get("role") != "assistant":
        raise DataError(f"{side!r} must be one assistant message, got {len(messages)} messages: {messages!r:.80}")
    if unread := set(messages[0]) - {"role", "content"}:
        raise DataError(f"{side!r} has fields that are not read: {', '.join(sorted(unread))}; remove them")
    return check_text(messages[0].get("content"), f"the content of {side!r}")


def _scores(
    row: Mapping[str, Any], side: str, objectives: Sequence[str], scales: Mapping[str, Scale], template: Any
) -> dict[str, float]:
    """The side's score on every objective; where none is given and none needed, the top of the scale or nothing."""
    column = f"{side}_scores"
    given = row.get(column)
    if given is None:
        if side == "rejected":
            return {}
        if template == PLAIN:
            return {objective: scales.get(objective, _NO_SCALE).high for objective in objectives}
        raise DataError(
            f"there is no column {column!r} with {{objective: number}}, which the template shows; add it, or use "
            "template='plain'"
        )
    if not isinstance(given, Mapping):
        raise DataError(f"{column!r} must map each objective to a number, but is {type(given).__name__}")
    scores = {}
    for objective in objectives:
        value = given.get(objective)
        if value is None and template == PLAIN:  # it shows no score, so none is missing
            value = scales.get(objective, _NO_SCALE).high
        if not is_finite_number(value):
            raise DataError(f"{column!r} has {value!r} for objective {objective!r}; a finite number is needed")
        if objective not in scales:
            value = _NO_SCALE.high
        elif value not in scales[objective]:
            raise DataError(
                f"{column!r}: {value} for objective {objective!r} is outside its scale {scales[objective]}; declare "
                f"the scale, e.g. scales={objective}=low:high"
            )
        scores[objective] = float(value)
    return scores
