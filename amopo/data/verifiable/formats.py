"""The forms in which a task can ask for its answer.

A `Format` has the instruction shown in the prompt, `wrap(answer)` that carries it out, and two patterns that find it in
any text: `marked` is the form as asked for, `loose` one that is begun or slightly wrong. Group 1 (or 2) of a match is
the answer inside. "capitals" is for answers made of letters; the other formats take every answer.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True)
class Format:
    instruction: str
    wrap: Callable[[str], str]
    marked: re.Pattern[str]
    loose: re.Pattern[str]
    letters_only: bool = False


FORMATS: dict[str, Format] = {
    "brackets": Format(
        "Answer in square brackets.",
        lambda answer: f"[{answer}]",
        re.compile(r"\[([^\[\]]*)\]"),
        re.compile(r"[(\[]\s*([A-Za-z0-9]+)|([A-Za-z0-9]+)\s*[)\]]"),
    ),
    "label": Format(
        "Use the form Answer: X.",
        lambda answer: f"Answer: {answer}.",
        re.compile(r"\bAnswer: ([A-Za-z0-9]*)"),
        re.compile(r"\b[Aa]nswer\W*(?:is\W*)?([A-Za-z0-9]+)"),
    ),
    "stars": Format(
        "Answer between stars.",
        lambda answer: f"*{answer}*",
        re.compile(r"\*([^*]*)\*"),
        re.compile(r"\*\s*([A-Za-z0-9]+)|([A-Za-z0-9]+)\s*\*"),
    ),
    "capitals": Format(
        "Answer in capital letters.",
        str.upper,
        # "I" or "A" inside a sentence is a word of that sentence.
        re.compile(r"(?<![A-Za-z'])(?![IA]\b(?!\W*$))([A-Z]+)(?![A-Za-z'])"),
        re.compile(r"(?<![A-Za-z'])([A-Z][a-z]+)(?![A-Za-z'])\W*$"),
        letters_only=True,
    ),
}


def content(match: re.Match[str]) -> str:
    """The answer inside a match."""
    return next(group for group in match.groups() if group is not None).strip()
