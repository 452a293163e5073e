"""Scores of any text: the ladder of each objective, and texts that try to cheat."""

from __future__ import annotations

import random
import string

import pytest
from hypothesis import given
from hypothesis import strategies as st

from amopo.data.verifiable import OBJECTIVES, Task, generate_tasks, score_response
from amopo.data.verifiable.formats import FORMATS

ADD = Task("add", (7, 12), "brackets")
SUBTRACT = Task("subtract", (15, 6), "label")
LARGEST = Task("largest", (9, 17, 4), "stars")
SMALLEST = Task("smallest", (9, 17, 4), "label")
COUNT = Task("count", ("red", "cat", "sun"), "brackets")
FIRST = Task("first", ("boat",), "capitals")
LAST = Task("last", ("boat",), "stars")
REVERSE = Task("reverse", ("boat",), "label")
SHOUTED = Task("reverse", ("boat",), "capitals")
TASKS = generate_tasks(400, seed=5)


def score(objective, task, text):
    return score_response(task, text)[objective]


@pytest.mark.parametrize(
    "task, text, expected",
    [
        (ADD, "[19]", 4),
        (ADD, "It is 19.", 4),
        (ADD, "[20]", 3),
        (ADD, "[17]", 2),
        (ADD, "[24]", 1),
        (ADD, "[25]", 0),
        (ADD, "7 + 12 = 19. [18]", 3),
        (ADD, "[18] [19]", 1),
        (SUBTRACT, "Answer: 9.", 4),
        (SUBTRACT, "Answer: 0.", 0),
        (LARGEST, "*17*", 4),
        (LARGEST, "*9*", 2),
        (LARGEST, "*4*", 1),
        (LARGEST, "*16*", 0),
        (SMALLEST, "Answer: 4", 4),
        (SMALLEST, "Answer: 9", 2),
        (SMALLEST, "Answer: 17", 1),
        (COUNT, "[3]", 4),
        (COUNT, "[4]", 2),
        (COUNT, "[5]", 1),
        (COUNT, "[6]", 0),
        (FIRST, "B", 4),
        (FIRST, "b", 4),
        (FIRST, "O", 2),
        (FIRST, "T", 1),
        (FIRST, "X", 0),
        (LAST, "*t*", 4),
        (LAST, "The last letter is t, I think.", 4),
        (LAST, "a", 2),
        (REVERSE, "Answer: taob.", 4),
        (REVERSE, "It is taob.", 4),
        (REVERSE, "Answer: taod.", 3),
        (REVERSE, "Answer: toab.", 2),
        (REVERSE, "Answer: boat.", 1),
        (REVERSE, "Answer: taxi.", 1),
        (REVERSE, "Answer: zoo.", 0),
    ],
)
def test_correctness_falls_with_the_distance_from_the_answer(task, text, expected):
    assert score("correctness", task, text) == expected


@pytest.mark.parametrize(
    "task, text, expected",
    [
        (ADD, "[19]", 4),
        (ADD, "I add them. [ 99 ].", 4),
        (ADD, "[19] I am sure.", 3),
        (ADD, "(19)", 2),
        (ADD, "[19", 2),
        (ADD, "[19] [19]", 2),
        (ADD, "[18] [19]", 1),
        (ADD, "[the sum] 19", 1),
        (ADD, "*19*", 1),
        (ADD, "It is 19.", 1),
        (ADD, "[]", 0),
        (SUBTRACT, "Answer: 9.", 4),
        (SUBTRACT, "The answer is 9.", 2),
        (SUBTRACT, "answer: 9", 2),
        (LARGEST, "9 < 17. *17*", 4),
        (LARGEST, "*17", 2),
        (FIRST, "b o a t. B", 4),
        (FIRST, "B I am sure.", 3),
        (FIRST, "b", 1),
        (SHOUTED, "TAOB", 4),
        (SHOUTED, "TAOB, I think.", 3),
        (SHOUTED, "Taob.", 2),
        (SHOUTED, "taob", 1),
    ],
)
def test_instruction_following_judges_the_form_alone(task, text, expected):
    assert score("instruction_following", task, text) == expected


@pytest.mark.parametrize(
    "task, text, expected",
    [
        (ADD, "7 + 12 = 19. [19]", 4),
        (ADD, "12+7=19", 4),
        (ADD, "7 + 12 = 20. [20]", 3),
        (ADD, "7 + 12 = 20. 7 + 12 = 19. [19]", 3),
        (ADD, "7 and 12 make [19]", 2),
        (ADD, "I add them. [19]", 2),
        (ADD, "3 + 4 = 7. [19]", 1),
        (ADD, "[19]", 1),
        (SUBTRACT, "15 - 6 = 9. Answer: 9.", 4),
        (SUBTRACT, "6 - 15 = 9. Answer: 9.", 2),
        (LARGEST, "4 < 9 < 17. *17*", 4),
        (LARGEST, "17 > 9 > 4. *17*", 4),
        (LARGEST, "9 < 17. *17*", 3),
        (LARGEST, "9 < 4 < 17. *17*", 3),
        (LARGEST, "9, 17, 4. *17*", 2),
        (LARGEST, "*17*", 1),
        (COUNT, "1 red, 2 cat, 3 sun. [3]", 4),
        (COUNT, "1 red, 2 sun. [2]", 3),
        (COUNT, "red, cat, sun. [3]", 2),
        (COUNT, "[3]", 1),
        (FIRST, "b o a t. B", 4),
        (FIRST, "b-o-a-t. B", 4),
        (FIRST, "b o t. B", 3),
        (FIRST, "The first of boat is B", 2),
        (FIRST, "B", 1),
        (REVERSE, "t a o b. Answer: taob.", 4),
    ],
)
def test_helpfulness_climbs_with_the_working(task, text, expected):
    assert score("helpfulness", task, text) == expected


def test_conciseness_counts_the_characters_beyond_the_shortest_answer():
    filler = {0: 4, 2: 4, 3: 3, 10: 3, 11: 2, 22: 2, 23: 1, 40: 1, 41: 0}
    for extra, expected in filler.items():
        assert score("conciseness", ADD, "." * extra + "[19]") == expected
    # What the form itself needs is free.
    assert score("conciseness", SUBTRACT, "Answer: 9.") == 4
    assert score("conciseness", SUBTRACT, "9") == 4


@pytest.mark.parametrize(
    "text", ["", "  \n", "I do not know.", "Good question.", "!!!", "[]", "**", "Answer:", "1" * 5000]
)
@pytest.mark.parametrize(
    "task", [ADD, SUBTRACT, LARGEST, COUNT, FIRST, LAST, REVERSE, SHOUTED], ids=lambda task: task.kind
)
def test_no_answer_scores_nothing_anywhere(task, text):
    assert score_response(task, text) == dict.fromkeys(OBJECTIVES, 0.0)


def test_showing_the_working_costs_conciseness():
    for task in TASKS:
        bare = FORMATS[task.format].wrap(task.answer)
        worked = f"{_working(task)} {bare}"
        assert score_response(task, bare) == dict(zip(OBJECTIVES, (4, 4, 1, 4), strict=True))
        scores = score_response(task, worked)
        assert (scores["correctness"], scores["instruction_following"], scores["helpfulness"]) == (4, 4, 4)
        assert scores["conciseness"] < 4


def _working(task):
    """The working, written here by hand."""
    match task.kind:
        case "add" | "subtract":
            a, b = task.operands
            return f"{a} {'+' if task.kind == 'add' else '-'} {b} = {a + b if task.kind == 'add' else a - b}."
        case "largest" | "smallest":
            return " < ".join(map(str, sorted(task.operands))) + "."
        case "count":
            return ", ".join(f"{i + 1} {word}" for i, word in enumerate(task.operands)) + "."
        case _:
            return " ".join(task.operands[0]) + "."


def mean_score(write, *, objective=None):
    scores = [score_response(task, write(task)) for task in TASKS]
    names = (objective,) if objective else OBJECTIVES
    return sum(score[name] for score in scores for name in names) / len(names) / len(scores)


def test_saying_the_same_to_every_task_pays_badly():
    for text in (
        "[10]",
        "Answer: 10.",
        "*a*",
        "T",
        "It is 3.",
        "1 2 3 4 5 6 7 8 9 10 11 12",
        "a b c d e",
        "[1] *2* Answer: 3.",
    ):
        assert mean_score(lambda _, text=text: text) < 1.25, text


def test_repeating_the_prompt_pays_badly():
    assert mean_score(lambda task: task.prompt) < 1
    assert mean_score(lambda task: task.prompt, objective="correctness") < 1


def test_repeating_the_answer_loses_conciseness_and_form():
    for task in TASKS:
        scores = score_response(task, " ".join([FORMATS[task.format].wrap(task.answer)] * 100))
        assert scores["conciseness"] == 0
        assert max(scores.values()) <= 1


def test_naming_many_answers_earns_little():
    guesses = " ".join(f"[{n}]" for n in range(30))
    assert score_response(ADD, guesses)["correctness"] <= 1
    assert score_response(ADD, guesses)["instruction_following"] <= 1


@given(task=st.sampled_from(TASKS), text=st.text(max_size=200) | st.text("[]*()0123456789 +-=<>.,:abtAB", max_size=60))
def test_any_text_scores_whole_numbers_from_0_to_4(task, text):
    scores = score_response(task, text)
    assert tuple(scores) == OBJECTIVES
    assert all(value in (0.0, 1.0, 2.0, 3.0, 4.0) for value in scores.values())


def test_random_letters_earn_almost_nothing():
    rng = random.Random(0)
    assert mean_score(lambda _: "".join(rng.choices(string.ascii_lowercase + " ", k=20))) < 0.75
