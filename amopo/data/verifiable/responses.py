"""Responses of graded quality to a task.

    graded_responses(task, n, rng=random.Random(0)) -> n distinct texts

A response is put together from an opening, the working, the answer in some form, a closing. Each part is drawn by
itself, the better variants likelier for the better responses of a prompt; so scores differ between the objectives, and
none is always at an end. Texts stay short and use few words: a small model has to learn them.
"""

from __future__ import annotations

import random

from amopo.data.verifiable.formats import FORMATS
from amopo.data.verifiable.kinds import KINDS, WORDS
from amopo.data.verifiable.tasks import GIVE_UP, Task, formats_for

NO_ANSWERS = ("I do not know.", "This is too hard.", "Sorry, I can not say.", "Good question.")
OPENINGS = ("Sure.", "Let me see.", "Sure, let me look at it.")
CLOSINGS = ("I am sure.", "Good luck.", "Ask me more.")


def graded_responses(task: Task, n: int, *, rng: random.Random) -> list[str]:
    """`n` distinct texts in random order, their quality spread from poor to good."""
    texts: dict[str, None] = {}
    unlucky = 0
    while len(texts) < n:
        # One quality per text, evenly spread, so that each prompt gets poor and good ones.
        quality = (len(texts) + rng.random()) / n
        text = _compose(task, quality, rng)
        unlucky = unlucky + 1 if text in texts else 0
        if unlucky > GIVE_UP:
            raise ValueError(f"cannot find {n} distinct responses to {task.prompt!r}; ask for fewer")
        texts[text] = None
    return rng.sample(list(texts), n)


def _compose(task: Task, quality: float, rng: random.Random) -> str:
    def chance(poor: float, good: float) -> bool:
        return rng.random() < poor + (good - poor) * quality

    if chance(0.3, 0.0):
        return rng.choice(NO_ANSWERS)
    kind = KINDS[task.kind]
    parts = []
    if chance(0.4, 0.1):
        parts.append(rng.choice(OPENINGS))
    is_right = chance(0.1, 0.75)
    if chance(0.3, 0.6):
        complete = chance(0.3, 0.85)
        parts.append(kind.working(task.operands) if complete else kind.slip(task.operands, rng))
        # Who shows the whole working mostly has the answer.
        is_right = is_right or (complete and chance(0.5, 0.9))
    elif chance(0.5, 0.2):
        parts.append(kind.rule)
    answer = task.answer if is_right else _wrong_answer(task, rng)
    parts.append(_write_answer(task, answer, chance(0.1, 0.6), rng))
    if chance(0.4, 0.1):
        parts.append(rng.choice(CLOSINGS))
    return " ".join(parts)


def _write_answer(task: Task, answer: str, as_asked: bool, rng: random.Random) -> str:
    if as_asked:
        return FORMATS[task.format].wrap(answer)
    # The commonest single form is a poor one: a model that imitates the crowd has something left to learn.
    if rng.random() < 0.65:
        return f"It is {answer}."
    if rng.random() < 0.3:
        others = [name for name in formats_for(task.kind) if name != task.format]
        return FORMATS[rng.choice(others)].wrap(answer)
    broken = {"brackets": f"({answer})", "label": f"answer is {answer}.", "stars": f"*{answer}"}
    return broken.get(task.format, f"{answer.capitalize()}.")


def _wrong_answer(task: Task, rng: random.Random) -> str:
    """Mostly near the right answer, sometimes anything."""
    answer_type = KINDS[task.kind].answer_type
    near = rng.random() < 0.75
    if answer_type == "number":
        if task.kind in ("largest", "smallest") and near:
            candidates = [str(number) for number in task.operands]
        else:
            span = 3 if near else 9
            candidates = [str(max(0, int(task.answer) + step)) for step in range(-span, span + 1)]
    elif answer_type == "letter":
        candidates = list(task.operands[0]) if near else [word[0] for word in WORDS]
    else:
        letters = list(task.answer)
        swapped = [*letters[:-2], letters[-1], letters[-2]]
        changed = [*letters[:-1], rng.choice(WORDS)[0]]
        candidates = ["".join(swapped), "".join(changed)] if near else [task.operands[0], rng.choice(WORDS)]
    wrong = [candidate for candidate in candidates if candidate != task.answer]
    return rng.choice(wrong) if wrong else rng.choice([word for word in ("x", "q") if word != task.answer])
