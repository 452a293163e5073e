"""The judge's reply, as a score on the scale.

    read_completion(body) -> Completion(text, finish_reason, prompt_tokens, completion_tokens)   a chat-completions body
    read_score(completion, scale, whole=True) -> Verdict(score, reason)

`UnreadableReply` says what is wrong, in words that the judge is shown when it is asked again. One JSON object with a
"score" is needed; a code fence or words around it, and a <think> block before it, do no harm. Two objects with a score
are refused: one of them may have been quoted from the answer that is graded.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from typing import Any

from amopo.data.annotate.errors import printable
from amopo.data.schema import Scale, is_finite_number, show_number

_NUMBER = re.compile(r"[+-]?\d{1,9}(\.\d{1,9})?")


class UnreadableReply(ValueError):
    """A reply without a score that can be used. It was billed all the same."""


@dataclass(frozen=True)
class Completion:
    text: str
    finish_reason: str | None
    prompt_tokens: int
    completion_tokens: int


@dataclass(frozen=True)
class Verdict:
    score: float
    reason: str


def read_completion(body: bytes) -> Completion:
    try:
        data = json.loads(body)
    except (ValueError, RecursionError):
        raise UnreadableReply("the server's answer is not JSON") from None
    if not isinstance(data, dict):
        raise UnreadableReply("the server's answer is no chat completion: no JSON object")
    choices = data.get("choices")
    choice = choices[0] if isinstance(choices, list) and choices else None
    message = choice.get("message") if isinstance(choice, dict) else None
    if not isinstance(message, dict):
        detail = f" (it says: {printable(json.dumps(data['error']))})" if data.get("error") else ""
        raise UnreadableReply(f'the server\'s answer is no chat completion: no "choices"[0]."message"{detail}')
    usage = data.get("usage") if isinstance(data.get("usage"), dict) else {}
    content = message.get("content")
    finish = choice.get("finish_reason")
    return Completion(
        text=content if isinstance(content, str) else "",
        finish_reason=finish if isinstance(finish, str) else None,
        prompt_tokens=_count(usage.get("prompt_tokens")),
        completion_tokens=_count(usage.get("completion_tokens")),
    )


def read_score(completion: Completion, scale: Scale, *, whole: bool) -> Verdict:
    if completion.finish_reason == "length":
        raise UnreadableReply("it was cut off at the token limit (raise --max-tokens)")
    if completion.finish_reason == "content_filter":
        raise UnreadableReply("the server's content filter withheld it")
    text = completion.text.strip()
    if not text.startswith(("{", "```")):
        text = text.rpartition("</think>")[2]  # some chat templates open the block themselves
    if not text.strip():
        raise UnreadableReply("it is empty")
    found = [value for value in _objects(text) if "score" in value]
    if not found:
        raise UnreadableReply('it holds no JSON object with a "score"')
    if len(found) > 1:
        raise UnreadableReply(f'it holds {len(found)} JSON objects with a "score"; one is needed')
    score = found[0]["score"]
    if isinstance(score, str) and _NUMBER.fullmatch(score.strip()):
        score = float(score)
    low, high = show_number(scale.low), show_number(scale.high)
    if not is_finite_number(score):
        raise UnreadableReply(f"the score is {printable(json.dumps(score), 40)}, no number from {low} to {high}")
    if score not in scale:
        raise UnreadableReply(f"the score {score:g} is outside the scale from {low} to {high}")
    if whole and not float(score).is_integer():
        raise UnreadableReply(f"the score {score:g} is no whole number from {low} to {high}")
    reason = found[0].get("reason")
    return Verdict(float(score), reason if isinstance(reason, str) else "")


def _objects(text: str) -> list[dict[str, Any]]:
    """The outermost JSON objects in a text, in their order."""
    found, start, decoder = [], text.find("{"), json.JSONDecoder()
    # Braces that open nothing cost a scan each; a reply has few, and one with thousands is no reply.
    for _ in range(1000):
        if start < 0:
            break
        try:
            value, end = decoder.raw_decode(text, start)
        except (ValueError, RecursionError):
            end = start + 1
        else:
            found.append(value)
        start = text.find("{", end)
    return found


def _count(value: object) -> int:
    return value if isinstance(value, int) and not isinstance(value, bool) and value >= 0 else 0
