"""TRL's preference columns with scores: one row per pair.

    {"prompt", "chosen", "rejected", "chosen_scores": {objective: number}, "rejected_scores": {...}, "id", "scales"}

`chosen` and `rejected` are text, or lists of messages whose last one is the assistant's answer; `prompt` is text or
messages. The prompt may be missing, as in TRL: then it is what `chosen` and `rejected` begin with in common, whole
messages of a conversation, or text up to the last word that is the same. Conversations beside a prompt that is text
are whole conversations too. `id` and `scales` are optional.

Which text is the better one follows from the scores, as in every form, and not from the columns' names.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from amopo.data.readers.raw import RawRecord, RawResponse, others, require
from amopo.data.schema import DataError
from amopo.data.sources.source import Row

FIELDS = '"chosen", "rejected", "chosen_scores" and "rejected_scores", mostly "prompt"'
SIDES = ("chosen", "rejected")
# Columns that change what TRL feeds to the model. They are not read here, so they must be empty.
_UNREAD = ("tools", "chat_template_kwargs")


def matches(row: Mapping[str, Any]) -> bool:
    return "chosen" in row and not isinstance(row["chosen"], Mapping)


def read_row(numbered: Row) -> RawRecord:
    number, row = numbered
    require(row, SIDES, "the row")
    for side in SIDES:
        if f"{side}_scores" not in row:
            raise DataError(
                f'the row has no "{side}_scores"; it needs the scores of both, e.g. '
                f'"{side}_scores": {{"helpfulness": 3}}'
            )
        if not isinstance(row[f"{side}_scores"], Mapping):
            raise DataError(f'"{side}_scores" must map each objective to a number')
    for name in _UNREAD:
        if row.get(name):
            raise DataError(f'"{name}" is not read, but changes the prompt; remove it')
    prompt, texts = _split(row)
    responses = [
        RawResponse(number, side, text, row[f"{side}_scores"]) for side, text in zip(SIDES, texts, strict=True)
    ]
    extra = others(row, "id", "prompt", *SIDES, "chosen_scores", "rejected_scores", "scales", *_UNREAD)
    return RawRecord([numbered], prompt, responses, row.get("id"), row.get("scales"), extra)


def _split(row: Mapping[str, Any]) -> tuple[object, Sequence[object]]:
    """The prompt and the two texts."""
    chosen, rejected, prompt = row["chosen"], row["rejected"], row.get("prompt")
    if isinstance(chosen, str) and isinstance(rejected, str):
        return _split_texts(chosen, rejected) if prompt is None else (prompt, (chosen, rejected))
    if not isinstance(chosen, list) or not isinstance(rejected, list):
        kinds = " and ".join(f'"{side}" is {type(row[side]).__name__}' for side in SIDES)
        raise DataError(f"both must be text, or both lists of messages, but {kinds}")
    if not isinstance(prompt, list):
        common = _common_messages(chosen, rejected)
        if not common:
            raise DataError(
                'the conversations begin with different messages, so they have no prompt in common; add "prompt"'
            )
        prompt, chosen, rejected = chosen[:common], chosen[common:], rejected[common:]
    return prompt, (_answer(chosen, "chosen"), _answer(rejected, "rejected"))


def _split_texts(chosen: str, rejected: str) -> tuple[str, tuple[str, str]]:
    common = next(
        (i for i, (a, b) in enumerate(zip(chosen, rejected, strict=False)) if a != b), min(len(chosen), len(rejected))
    )
    # Not in the midst of a word; the space goes to the answers, as in TRL.
    inside_word = any(common < len(text) and not text[common].isspace() for text in (chosen, rejected))
    while common and (inside_word or chosen[common - 1].isspace()):
        inside_word = inside_word and not chosen[common - 1].isspace()
        common -= 1
    prompt, texts = chosen[:common], (chosen[common:], rejected[common:])
    if not prompt.strip() or not all(text.strip() for text in texts):
        raise DataError('the row has no "prompt", and the texts do not begin alike and then differ; add "prompt"')
    return prompt, texts


def _common_messages(chosen: list[object], rejected: list[object]) -> int:
    """How many messages the conversations have in common; the last of each is its answer."""
    most = min(len(chosen), len(rejected)) - 1
    return next((i for i in range(most) if chosen[i] != rejected[i]), max(0, most))


def _answer(messages: list[Any], side: str) -> object:
    if len(messages) != 1 or not isinstance(messages[0], Mapping) or messages[0].get("role") != "assistant":
        roles = ", ".join(str(m.get("role")) if isinstance(m, Mapping) else type(m).__name__ for m in messages)
        raise DataError(
            f'"{side}" must end with one message of the assistant after the prompt, but holds {roles or "none"}'
        )
    if unread := [key for key, value in messages[0].items() if key not in ("role", "content") and value]:
        raise DataError(f'the answer in "{side}" has fields that are not read: {", ".join(unread)}; remove them')
    if "content" not in messages[0]:
        raise DataError(f'the answer in "{side}" has no "content"')
    return messages[0]["content"]
