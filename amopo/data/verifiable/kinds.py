"""The kinds of questions that programs can answer.

A `Kind` draws operands, asks a question about them, answers it, and shows the working, right or with an error. It also
grades: `grade_answer(operands, answer) -> 0..4` how near an answer is, `grade_working(operands, text) -> 1..4` how much
working a text shows: 4 complete without error, 3 with an error or a gap, 2 names the operation or repeats the operands,
1 none of it. Most numbers are single digits, words have three letters: a small model has to learn each kind within
minutes.
"""

from __future__ import annotations

import random
import re
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

Operands = tuple[Any, ...]

WORDS = (
    "ace act age air arm art ash bag bat bed bee big box boy bus cap car cat cow cup day dog dry ear egg elf fan "
    "fig fox gas hat hen hot ice ink jam jar job key kid leg lid lip log man map mud new nut oak oil old owl pan "
    "pen pie pig ram red rug run sea sky sun tea ten toy tub van wax web wig yak zoo"
).split()
ITEMS = ("cat", "dog", "sun", "red", "cup", "map", "tea", "hat")


@dataclass(frozen=True)
class Kind:
    answer_type: str
    """"number", "letter" or "word"."""
    draw: Callable[[random.Random], Operands]
    question: Callable[[Operands], str]
    answer: Callable[[Operands], str]
    rule: str
    """The operation in a short sentence."""
    keyword: str
    working: Callable[[Operands], str]
    slip: Callable[[Operands, random.Random], str]
    """The working with an error or a gap."""
    grade_answer: Callable[[Operands, str], int]
    finds_working: Callable[[Operands, str], int]
    """4, 3, 2 or 0, by the working alone."""

    def grade_working(self, operands: Operands, text: str) -> int:
        named = 2 if re.search(rf"\b{self.keyword}", text, re.IGNORECASE) else 1
        return max(named, self.finds_working(operands, text))


def numbers_in(text: str) -> list[int]:
    # More digits than these are no answer to anything here, and int() refuses very long ones.
    return [int(digits) for digits in re.findall(r"[0-9]+", text) if len(digits) <= 9]


def words_in(text: str) -> list[str]:
    return re.findall(r"[a-z]+", text.lower())


def shared_letters(a: str, b: str) -> int:
    return (Counter(a) & Counter(b)).total()


# Arithmetic: 7 + 12


def _grade_number(steps: tuple[int, ...]) -> Callable[[int, str], int]:
    """4 for the right number; `steps` are the largest distances that still earn 3, 2 and 1."""

    def grade(right: int, answer: str) -> int:
        distance = abs(int(answer) - right)
        return 4 if distance == 0 else next((3 - i for i, step in enumerate(steps) if distance <= step), 0)

    return grade


def _arithmetic(sign: str, rule: str, keyword: str, draw: Callable[[random.Random], Operands]) -> Kind:
    def result(operands: Operands) -> int:
        a, b = operands
        return a + b if sign == "+" else a - b

    def slip(operands: Operands, rng: random.Random) -> str:
        wrong = result(operands) + rng.choice([step for step in (-3, -2, -1, 1, 2, 3) if result(operands) + step >= 0])
        return f"{operands[0]} {sign} {operands[1]} = {wrong}."

    def finds_working(operands: Operands, text: str) -> int:
        orders = {operands, operands[::-1]} if sign == "+" else {operands}
        equations = re.findall(rf"([0-9]{{1,9}}) ?\{sign} ?([0-9]{{1,9}}) ?= ?([0-9]{{1,9}})", text)
        results = {int(total) for a, b, total in equations if (int(a), int(b)) in orders}
        if results:
            return 4 if results == {result(operands)} else 3
        return 2 if set(operands) <= set(numbers_in(text)) else 0

    grade = _grade_number((1, 2, 5))
    return Kind(
        answer_type="number",
        draw=draw,
        question=lambda operands: f"What is {operands[0]} {sign} {operands[1]}?",
        answer=lambda operands: str(result(operands)),
        rule=rule,
        keyword=keyword,
        working=lambda operands: f"{operands[0]} {sign} {operands[1]} = {result(operands)}.",
        slip=slip,
        grade_answer=lambda operands, answer: grade(result(operands), answer),
        finds_working=finds_working,
    )


def _draw_difference(rng: random.Random) -> Operands:
    a = rng.randint(2, 20)
    return a, rng.randint(1, min(9, a - 1))


# Extremes of a list: 3, 9, 4


def _extreme(word: str, pick: Callable[[Operands], int]) -> Kind:
    def chain(operands: Operands) -> list[int]:
        return sorted(operands, reverse=pick is min)

    def write(numbers: list[int]) -> str:
        return (" > " if pick is min else " < ").join(map(str, numbers)) + "."

    def slip(operands: Operands, rng: random.Random) -> str:
        ordered = chain(operands)
        if rng.random() < 0.5:
            return write(ordered[1:])
        ordered[0], ordered[1] = ordered[1], ordered[0]
        return write(ordered)

    def finds_working(operands: Operands, text: str) -> int:
        chains = re.findall(r"[0-9]+(?: ?< ?[0-9]+)+|[0-9]+(?: ?> ?[0-9]+)+", text)
        if not chains:
            return 2 if set(operands) <= set(numbers_in(text)) else 0
        ascending = [numbers_in(found)[:: 1 if "<" in found else -1] for found in chains]
        return 4 if ascending == [sorted(operands)] else 3

    def grade_answer(operands: Operands, answer: str) -> int:
        if int(answer) not in operands:
            return 0
        return (4, 2, 1)[min(2, chain(operands)[::-1].index(int(answer)))]

    return Kind(
        answer_type="number",
        draw=lambda rng: tuple(rng.sample(range(1, 10), 3)),
        question=lambda operands: f"Which is {word}: {', '.join(map(str, operands))}?",
        answer=lambda operands: str(pick(operands)),
        rule=f"I take the {word}.",
        keyword=word,
        working=lambda operands: write(chain(operands)),
        slip=slip,
        grade_answer=grade_answer,
        finds_working=finds_working,
    )


# Length of a list: red, cat, sun


def _number_items(items: list[str]) -> str:
    return ", ".join(f"{number} {item}" for number, item in enumerate(items, start=1)) + "."


def _slip_count(operands: Operands, rng: random.Random) -> str:
    items = list(operands)
    items.remove(rng.choice(items))
    return _number_items(items)


def _finds_count(operands: Operands, text: str) -> int:
    numbered = [(int(number), item) for number, item in re.findall(r"([0-9]{1,9}) ?([a-z]+)", text.lower())]
    if numbered == list(enumerate(operands, start=1)):
        return 4
    if len(operands) // 2 <= sum(item in operands for _, item in numbered) <= 2 * len(operands):
        return 3
    return 2 if set(operands) <= set(words_in(text)) else 0


# Letters of a word: c a t


def _spelled(text: str) -> list[str]:
    runs = re.findall(r"(?<![A-Za-z'])[A-Za-z](?:[ ,-]+[A-Za-z](?![A-Za-z']))+", text)
    return ["".join(re.findall(r"[a-z]", run.lower())) for run in runs]


def _slip_spelling(operands: Operands, rng: random.Random) -> str:
    letters = list(operands[0])
    del letters[rng.randrange(1, len(letters))]
    return " ".join(letters) + "."


def _finds_spelling(operands: Operands, text: str) -> int:
    (word,) = operands
    close = [run for run in _spelled(text) if shared_letters(run, word) >= len(word) - 1 and len(run) <= len(word) + 1]
    if close:
        return 4 if set(close) <= {word, word[::-1]} else 3
    return 2 if word in words_in(text) else 0


def _grade_letter(position: int) -> Callable[[Operands, str], int]:
    def grade(operands: Operands, answer: str) -> int:
        (word,), letter = operands, answer.lower()
        neighbour = word[1] if position == 0 else word[-2]
        if letter == word[position]:
            return 4
        return 2 if letter == neighbour else int(letter in word)

    return grade


def _grade_reversed(operands: Operands, answer: str) -> int:
    (word,), answer = operands, answer.lower()
    right = word[::-1]
    if answer == right:
        return 4
    if answer == word:
        return 1
    if len(answer) == len(right) and sum(a != b for a, b in zip(answer, right, strict=True)) == 1:
        return 3
    if Counter(answer) == Counter(right):
        return 2
    return int(abs(len(answer) - len(right)) <= 1 and 2 * shared_letters(answer, right) >= len(right))


def _draw_word(rng: random.Random) -> Operands:
    return (rng.choice(WORDS),)


def _letters(
    answer_type: str,
    question: str,
    rule: str,
    keyword: str,
    answer: Callable[[str], str],
    grade_answer: Callable[[Operands, str], int],
) -> Kind:
    return Kind(
        answer_type=answer_type,
        draw=_draw_word,
        question=lambda operands: question.format(operands[0]),
        answer=lambda operands: answer(operands[0]),
        rule=rule,
        keyword=keyword,
        working=lambda operands: " ".join(operands[0]) + ".",
        slip=_slip_spelling,
        grade_answer=grade_answer,
        finds_working=_finds_spelling,
    )


_grade_count = _grade_number((0, 1, 2))

KINDS: dict[str, Kind] = {
    "add": _arithmetic("+", "I add them.", "add", lambda rng: (rng.randint(1, 20), rng.randint(1, 9))),
    "subtract": _arithmetic("-", "I subtract.", "subtract", _draw_difference),
    "largest": _extreme("largest", max),
    "smallest": _extreme("smallest", min),
    "count": Kind(
        answer_type="number",
        draw=lambda rng: tuple(rng.sample(ITEMS, rng.randint(2, 4))),
        question=lambda operands: f"How many words: {', '.join(operands)}?",
        answer=lambda operands: str(len(operands)),
        rule="I count them.",
        keyword="count",
        working=lambda operands: _number_items(list(operands)),
        slip=_slip_count,
        grade_answer=lambda operands, answer: _grade_count(len(operands), answer),
        finds_working=_finds_count,
    ),
    "first": _letters(
        "letter", "First letter of {}?", "I take the first.", "first", lambda word: word[0], _grade_letter(0)
    ),
    "last": _letters(
        "letter", "Last letter of {}?", "I take the last.", "last", lambda word: word[-1], _grade_letter(-1)
    ),
    "reverse": _letters(
        "word", "Write {} backwards.", "I turn it around.", "around", lambda word: word[::-1], _grade_reversed
    ),
}
