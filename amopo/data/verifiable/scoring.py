"""Scores of any text as an answer to a task.

    score_response(task, text) -> {"correctness", "instruction_following", "helpfulness", "conciseness"}, each 0 to 4

    correctness            4 right; 3, 2, 1 near misses (the next number, one letter off); 0 far off
    instruction_following  4 the answer once, in the form asked for, at the end; 3 more text follows;
                           2 the form is broken or repeated; 1 another form; 0 no answer
    helpfulness            4 the whole working; 3 with an error or a gap; 2 names the operation or repeats the operands;
                           1 the bare answer; 0 no answer
    conciseness            4 no more characters than the answer needs, down to 0 for more than 40 beyond

Helpfulness and conciseness conflict: the working takes the characters that conciseness counts.
Against cheating: a text without an answer scores 0 everywhere, conciseness included. Two different answers in the form
asked for get at most 1 for correctness and instruction_following. Beyond `MAX_CHARACTERS` no score is above 1.
"""

from __future__ import annotations

import re

from amopo.data.schema import Scale
from amopo.data.verifiable.formats import FORMATS, content
from amopo.data.verifiable.kinds import KINDS, numbers_in, shared_letters, words_in
from amopo.data.verifiable.tasks import Task

OBJECTIVES = ("correctness", "instruction_following", "helpfulness", "conciseness")
SCALES = {objective: Scale(0, 4) for objective in OBJECTIVES}
MAX_CHARACTERS = 160
# Characters beyond the shortest right answer that still earn 4, 3, 2 and 1.
CONCISENESS_STEPS = (2, 10, 22, 40)
_SHAPES = {"number": r"[0-9]{1,9}", "letter": r"[A-Za-z]", "word": r"[A-Za-z]{2,}"}


def score_response(task: Task, text: str) -> dict[str, float]:
    # Twice the limit says all there is to say about a runaway text, and keeps the patterns fast.
    text = text.strip()[: 2 * MAX_CHARACTERS]
    answer, form, hedged = _read_answer(task, text)
    if answer is None:
        return dict.fromkeys(OBJECTIVES, 0.0)
    kind = KINDS[task.kind]
    correctness = kind.grade_answer(task.operands, answer)
    scores = {
        "correctness": min(correctness, 1) if hedged else correctness,
        "instruction_following": form,
        "helpfulness": kind.grade_working(task.operands, text),
        "conciseness": _conciseness(task, text),
    }
    if len(text) > MAX_CHARACTERS:
        scores = {objective: min(score, 1) for objective, score in scores.items()}
    return {objective: float(score) for objective, score in scores.items()}


def _conciseness(task: Task, text: str) -> int:
    extra = len(text) - len(FORMATS[task.format].wrap(task.answer))
    return next((4 - i for i, step in enumerate(CONCISENESS_STEPS) if extra <= step), 0)


def _read_answer(task: Task, text: str) -> tuple[str | None, int, bool]:
    """The answer that the text gives, how well it keeps to the form (0 to 4), whether it hedges."""
    format, shape = FORMATS[task.format], _SHAPES[KINDS[task.kind].answer_type]
    matches = list(format.marked.finditer(text))
    marked = [content(match) for match in matches]
    good = [answer for answer in marked if re.fullmatch(shape, answer)]
    if good:
        if len(set(marked)) > 1:
            return good[-1], 1, True
        if len(marked) > 1:
            return good[-1], 2, False
        ends_there = not re.search(r"\w", text[matches[-1].end() :])
        return good[-1], 4 if ends_there else 3, False
    loose = [content(match) for match in format.loose.finditer(text)]
    loose = [answer for answer in loose if re.fullmatch(shape, answer) and _could_be_meant(task, answer)]
    if loose:
        return loose[-1], 2, False
    plain = _plain_answer(task, text)
    return plain, 0 if plain is None else 1, False


def _plain_answer(task: Task, text: str) -> str | None:
    """The likeliest answer in a text without the form asked for."""
    answer_type = KINDS[task.kind].answer_type
    if answer_type == "number":
        candidates = [str(number) for number in numbers_in(text)]
    elif answer_type == "letter":
        # "a" and "I" are mostly words; at the end of the text they are letters.
        candidates = re.findall(r"(?<![\w'])(?![AaI]\b(?!\W*$))([A-Za-z])(?![\w'])", text)
    else:
        candidates = words_in(text)
    candidates = [candidate for candidate in candidates if _could_be_meant(task, candidate)]
    return candidates[-1] if candidates else None


def _could_be_meant(task: Task, candidate: str) -> bool:
    """False for a word that does not look like the answer, and for the word from the question."""
    if KINDS[task.kind].answer_type != "word":
        return True
    found, right = candidate.lower(), task.answer
    return found != right[::-1] and abs(len(found) - len(right)) <= 1 and 2 * shared_letters(found, right) > len(right)
