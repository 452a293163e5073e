"""Prompts cut to a length. One token per character here, and a frame around the messages."""

from __future__ import annotations

import pytest

from amopo.data.truncate import CUT_MARK, KEEP_CHARACTERS, fit_prompt


def user(content):
    return {"role": "user", "content": content}


def assistant(content):
    return {"role": "assistant", "content": content}


def encode(messages, frames=("<", "<<<")):
    """K prompts: every message's text behind a frame, one number per character."""
    return [[ord(c) for c in frame + "|".join(m["content"] for m in messages)] for frame in frames]


def fit(messages, limit):
    return fit_prompt(messages, encode, limit=limit, name="sample 'q'")


def text(fitted):
    return ["".join(map(chr, ids)) for ids in fitted.ids]


def test_what_fits_is_left_alone():
    fitted = fit([user("a question")], 13)
    assert not fitted.cut
    assert text(fitted) == ["<a question", "<<<a question"]


def test_the_middle_of_the_user_text_goes_alike_for_all_objectives():
    content = "".join(chr(ord("a") + i % 26) for i in range(200))
    fitted = fit([user(content)], 60)
    kept = fitted.messages[-1]["content"]
    head, tail = kept.split(CUT_MARK)
    assert fitted.cut
    assert content.startswith(head) and content.endswith(tail) and abs(len(head) - len(tail)) <= 1
    assert text(fitted) == [f"<{kept}", f"<<<{kept}"]
    # The longest prompt fills the limit: not one character more was cut than had to be.
    assert max(map(len, fitted.ids)) == 60


def test_the_given_messages_are_not_changed():
    messages = [user("x" * 100)]
    fit(messages, 50)
    assert messages == [user("x" * 100)]


def test_the_oldest_turns_go_first_and_whole():
    messages = [
        {"role": "system", "content": "S"},
        user("one"),
        assistant("1"),
        user("two"),
        assistant("2"),
        user("three"),
    ]
    everything = len("<<<S|one|1|two|2|three")
    assert not fit(messages, everything).cut
    assert text(fit(messages, everything - 1))[0] == "<S|two|2|three"
    assert text(fit(messages, len("<<<S|two|2|three") - 1))[0] == "<S|three"


def test_the_last_question_is_cut_only_when_it_stands_alone():
    messages = [{"role": "system", "content": "S"}, user("one"), assistant("1"), user("x" * 40 + "y" * 40)]
    fitted = fit(messages, 45)
    system, question = text(fitted)[0].removeprefix("<").split("|")
    assert system == "S"
    assert question.startswith("xxxx") and question.endswith("yyyy") and CUT_MARK in question


def test_a_prompt_that_cannot_fit_names_sample_size_and_remedy():
    needed = 3 + KEEP_CHARACTERS + len(CUT_MARK)
    assert fit([user("x" * 200)], needed).cut
    with pytest.raises(ValueError, match="sample 'q': the prompt cannot fit: it needs 24 tokens") as error:
        fit([user("x" * 200)], needed - 1)
    assert needed == 24
    assert "max_prompt_length is 23; raise max_prompt_length or use a shorter template" in str(error.value)


def test_a_short_question_is_not_cut_into():
    with pytest.raises(ValueError, match="it needs 11 tokens"):
        fit([user("question")], 10)


def test_token_counts_that_jump_still_end_within_the_limit():
    # Sixteen characters are one token, except that every ninth length costs ten more.
    def jumpy(messages):
        length = len(messages[-1]["content"])
        return [[0] * (length // 16 + 10 * (length % 9 == 0) + 1)]

    for limit in range(3, 40):
        fitted = fit_prompt([user("x" * 1000)], jumpy, limit=limit, name="s")
        assert len(fitted.ids[0]) <= limit
        assert fitted.ids == jumpy(fitted.messages)
