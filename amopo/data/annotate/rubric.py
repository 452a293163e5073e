"""What the judge is told about an objective.

    rubric_for("instruction_following", Scale(0, 4)) -> text      shipped: this one in five steps, and every objective
                                                                 of amopo/data/descriptions.py with both ends named
    read_rubric("rubric.txt", objective=..., scale=...) -> text   the user's own words

In a user's file `{objective}`, `{low}` and `{high}` stand for the name and the ends of the scale; other braces stay as
they are. A rubric says what is graded. The frame around it (prompt.py) names the scale and the form of the reply, so
the scale that the judge reads is always the one that scores are checked against.
"""

from __future__ import annotations

from os import PathLike
from pathlib import Path

from amopo.data.descriptions import describe, display_name, list_descriptions
from amopo.data.schema import DataError, Scale, show_number

LONGEST_FILE = 100_000  # bytes; a rubric is sent with every question

# Shares of the scale, from its low to its high end.
_INSTRUCTION_FOLLOWING = (
    (0.0, "the request is ignored, misread, or turned down without need"),
    (0.25, "the subject is right, but most of what was asked for is missing or done otherwise"),
    (0.5, "the main request is met in part, or it is met while a stated condition is clearly broken"),
    (0.75, "everything that matters is done as asked; one small condition is missed or stretched"),
    (1.0, "each request and each condition is met, the unspoken but obvious ones too"),
)
_HOW_TO_CHECK = (
    "List for yourself what the user asked for: the task and all its parts, the form, length, language, tone and "
    "number of items, what to leave out, and what earlier turns or a system message laid down. Then look for each of "
    "them in the answer. Whether facts are right is another objective's concern, unless being right is the task. "
    "Extra material counts against the answer only where the request leaves no room for it."
)


def rubric_for(objective: str, scale: Scale) -> str:
    if objective not in list_descriptions():
        raise DataError(
            f"there is no rubric for the objective {objective!r}; write one into a file and name it with --rubric, or "
            f"take one of: {', '.join(list_descriptions())}"
        )
    description, name = describe(objective), display_name(objective)
    head = f"{name.capitalize()} is about {description.meaning}."
    if objective == "instruction_following":
        steps = [f"- {_at(scale, share)}: {text}" for share, text in _INSTRUCTION_FOLLOWING]
        return "\n".join([head, _HOW_TO_CHECK, "", *steps])
    low, high = show_number(scale.low), show_number(scale.high)
    return "\n".join(
        [
            head,
            "",
            f"- {low}: {description.low}",
            f"- {high}: {description.high}",
            "Use the numbers between them in even steps. Take the whole range where the answers deserve it.",
        ]
    )


def read_rubric(path: str | PathLike[str], *, objective: str, scale: Scale) -> str:
    try:
        raw = Path(path).read_bytes()
    except OSError as error:
        raise DataError(f"the rubric cannot be read ({error.strerror})", file=path) from None
    if len(raw) > LONGEST_FILE:
        raise DataError(
            f"the rubric has {len(raw)} bytes, at most {LONGEST_FILE} are sent with every question", file=path
        )
    try:
        text = raw.decode("utf-8-sig").strip()
    except UnicodeDecodeError as error:
        raise DataError(f"the rubric is not UTF-8 text ({error.reason} at byte {error.start})", file=path) from None
    if not text:
        raise DataError("the rubric is empty; write what each score stands for", file=path)
    values = {"objective": display_name(objective), "low": show_number(scale.low), "high": show_number(scale.high)}
    for name, value in values.items():
        text = text.replace("{" + name + "}", value)
    return text


def _at(scale: Scale, share: float) -> str:
    return show_number(scale.low + share * (scale.high - scale.low))
