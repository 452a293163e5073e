"""Templates: one text per prompt, nothing changed that was given."""

from __future__ import annotations

import copy

import pytest
from hypothesis import given
from hypothesis import strategies as st

from amopo import templates
from amopo.data.descriptions import describe, list_descriptions
from amopo.data.schema import Scale
from amopo.data.templates import Template, get_template, register_template

SCALE = Scale(0, 4)
CHAT = [
    {"role": "system", "content": "Be kind."},
    {"role": "user", "content": "Hi"},
    {"role": "assistant", "content": "Hello"},
    {"role": "user", "content": "What is snow?"},
]
DESCRIBED = (
    "helpfulness correctness coherence complexity verbosity instruction_following conciseness harmlessness "
    "informativeness naturalness quality fluency consistency relevance overall"
).split()


def last(name, objective="helpfulness", score=3.0, scale=SCALE, messages=CHAT):
    return get_template(name).render(messages, objective=objective, score=score, scale=scale)[-1]["content"]


def test_the_rubric_names_objective_meaning_scale_and_score_before_the_question():
    text, question = last("rubric").split("\n\n")
    assert question == "What is snow?"
    meaning = describe("helpfulness")
    ends = f"0 ({meaning.low})", f"4 ({meaning.high})", f"2 stands for the middle ({meaning.middle})"
    for part in ("helpfulness", meaning.meaning, *ends, "rated 3 for"):
        assert part in text


def test_the_suffix_has_the_same_text_after_the_question():
    text, question = last("rubric").split("\n\n")
    assert last("rubric_suffix") == f"{question}\n\n{text}"


def test_brief_is_one_short_line():
    assert last("brief") == "helpfulness 3/4\n\nWhat is snow?"
    assert last("brief", "instruction_following", 3.5, Scale(1, 6)) == "instruction following 3.5/6\n\nWhat is snow?"


def test_plain_leaves_the_messages_as_they_are():
    assert get_template("plain").render(CHAT, objective="helpfulness", score=3, scale=SCALE) == CHAT


def test_without_a_score_no_score_is_shown():
    assert last("brief", score=None) == "helpfulness\n\nWhat is snow?"
    assert "would be rated" not in last("rubric", score=None)
    assert "from 0 (" in last("rubric", score=None)


def test_scores_show_at_most_two_decimals():
    assert last("brief", score=8 / 3).startswith("helpfulness 2.67/4")


@pytest.mark.parametrize("name", ["rubric", "rubric_suffix", "brief", "plain"])
@pytest.mark.parametrize("score", [4.1, -1, float("nan"), "3", True])
def test_a_score_off_the_scale_raises(name, score):
    with pytest.raises(ValueError, match="for objective 'helpfulness' is not on its scale 0 to 4"):
        last(name, score=score)


@pytest.mark.parametrize("messages", [[], CHAT[:3]])
def test_the_last_message_must_be_the_users(messages):
    with pytest.raises(ValueError, match="needs messages whose last one is from the user"):
        last("rubric", messages=messages)


@given(
    name=st.sampled_from(["rubric", "rubric_suffix", "brief", "plain"]),
    contents=st.lists(st.text(min_size=1), min_size=1, max_size=3),
    order=st.permutations(["helpfulness", "correctness", "wit", "quality"]),
    scores=st.lists(st.integers(0, 4), min_size=4, max_size=4),
)
def test_rendering_changes_nothing_and_does_not_accumulate(name, contents, order, scores):
    template = get_template(name)
    messages = [{"role": "user", "content": content} for content in contents]
    before = copy.deepcopy(messages)
    for objective, score in zip(order, scores, strict=True):
        text = template.text(objective=objective, score=score, scale=SCALE)
        rendered = template.render(messages, objective=objective, score=score, scale=SCALE)
        assert messages == before
        assert rendered[:-1] == before[:-1]
        pieces = {"rubric_suffix": [contents[-1], text], "plain": [contents[-1]]}.get(name, [text, contents[-1]])
        assert rendered[-1] == {"role": "user", "content": "\n\n".join(pieces)}
        # Nor does a change of the outcome reach back.
        rendered[0]["content"] = "changed"
        assert messages == before


def test_common_objectives_have_words_of_their_own():
    assert set(DESCRIBED) <= set(list_descriptions())
    assert len({describe(name).meaning for name in DESCRIBED}) == len(DESCRIBED)


def test_each_level_of_a_rubric_says_something_of_its_own():
    for name in DESCRIBED:
        words = describe(name)
        levels = (words.low, words.middle, words.high)
        assert all(levels) and len(set(levels)) == 3, name


def test_the_middle_is_that_of_the_scale():
    assert "from 1 (" in last("rubric", score=3, scale=Scale(1, 6))
    assert "; 3.5 stands for the middle (" in last("rubric", score=3, scale=Scale(1, 6))


def test_overall_is_called_overall_quality():
    assert last("rubric", "overall").startswith("This request is about overall quality: how good the answer is")
    assert last("brief", "overall") == "overall quality 3/4\n\nWhat is snow?"


def test_other_objectives_get_generic_words():
    assert "how much dry wit the answer shows" in last("rubric", "dry_wit")


@pytest.fixture
def shout():
    def write(objective, score, scale):
        return f"{objective.upper()}!"

    register_template("test-shout", write, position="suffix", replace=True)
    return "test-shout"


def test_users_register_functions_and_templates(shout):
    assert last(shout) == "What is snow?\n\nHELPFULNESS!"
    assert shout in templates.list()
    with pytest.raises(ValueError, match="already registered"):
        register_template(shout, Template(shout, None))

    @templates.register("test-whisper", replace=True)
    def whisper(objective, score, scale):
        return f"({objective} {score}/{scale.high})"

    assert last("test-whisper") == "(helpfulness 3.0/4.0)\n\nWhat is snow?"


def test_templates_that_cannot_be_used_say_so():
    with pytest.raises(ValueError, match="position must be one of prefix, suffix"):
        Template("x", None, "middle")
    with pytest.raises(TypeError, match="template 'x' must be a Template or a function"):
        register_template("x", "text")
    for nothing in ("", None):
        with pytest.raises(ValueError, match="template 'x' wrote"):
            last(Template("x", lambda *_, text=nothing: text))


def test_scores_are_never_written_with_an_exponent():
    text = get_template("brief").text(objective="wit", score=1234567.0, scale=Scale(-0.001, 5e6))
    assert text == "wit 1234567/5000000"
    assert "rated from 0 (" in get_template("rubric").text(objective="wit", score=None, scale=Scale(-0.001, 4))
