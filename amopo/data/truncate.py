"""Prompts cut to a length, alike for all objectives.

    fit_prompt(messages, encode, limit=512, name="sample 7") -> FittedPrompt(messages, ids, cut)

`encode(messages)` writes the K templates around the messages and gives K lists of token ids. While the longest exceeds
`limit`: first the oldest turns go, a question together with its answer (system messages stay), then the middle of the
last user message. One cut serves all K objectives, so they differ in their template alone. Template and assistant
header are never cut. A prompt that does not fit with `KEEP_CHARACTERS` of the user's text raises ValueError: sample,
size needed, remedy.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from amopo.data.schema import Message

CUT_MARK = " ... "
# Less than this of a question is no question.
KEEP_CHARACTERS = 16

Encode = Callable[[Sequence[Message]], list[list[int]]]


@dataclass(frozen=True)
class FittedPrompt:
    messages: list[Message]
    ids: list[list[int]]
    cut: bool


def fit_prompt(messages: Sequence[Message], encode: Encode, *, limit: int, name: str) -> FittedPrompt:
    kept = list(messages)
    ids = encode(kept)
    if _longest(ids) <= limit:
        return FittedPrompt(kept, ids, False)
    while (fewer := _without_oldest_turn(kept)) is not None:
        kept, ids = fewer, encode(fewer)
        if _longest(ids) <= limit:
            return FittedPrompt(kept, ids, True)
    # Binary search for the most characters that fit; `best` always holds ids that were seen to fit.
    fits, fails = KEEP_CHARACTERS, len(kept[-1]["content"])
    best = _cut_middle(kept, fits, encode) if fits < fails else FittedPrompt(kept, ids, True)
    if _longest(best.ids) > limit:
        raise ValueError(
            f"{name}: the prompt cannot fit: it needs {_longest(best.ids)} tokens with the user's text "
            "cut as far as it can be, "
            f"but max_prompt_length is {limit}; raise max_prompt_length or use a shorter template, e.g. 'brief'"
        )
    while fails - fits > 1:
        middle = (fits + fails) // 2
        candidate = _cut_middle(kept, middle, encode)
        if _longest(candidate.ids) <= limit:
            fits, best = middle, candidate
        else:
            fails = middle
    return best


def _longest(ids: list[list[int]]) -> int:
    return max(map(len, ids))


def _without_oldest_turn(messages: list[Message]) -> list[Message] | None:
    """Without the first turn that is no system message, up to the next question; None when only the last is left."""
    turns = [index for index, message in enumerate(messages) if message["role"] != "system"]
    questions = [index for index in turns if messages[index]["role"] == "user" and index > turns[0]]
    if not questions:
        return None
    return [message for index, message in enumerate(messages) if message["role"] == "system" or index >= questions[0]]


def _cut_middle(messages: list[Message], characters: int, encode: Encode) -> FittedPrompt:
    """The last message with so many characters of its own, from both ends."""
    content = messages[-1]["content"]
    tail = characters // 2
    text = content[: characters - tail] + CUT_MARK + content[len(content) - tail :]
    cut: list[Message] = [*messages[:-1], {"role": "user", "content": text}]
    return FittedPrompt(cut, encode(cut), True)
