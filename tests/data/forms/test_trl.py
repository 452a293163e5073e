"""TRL's preference columns: what they become, and what each bad row says."""

from __future__ import annotations

import pytest
from form_rows import GOOD, POOR, assistant, read, refused, shown, trl, user

from amopo.data import Scale

TRL_FORMS = {
    "plain": trl(),
    "conversational": trl([assistant("yes")], [assistant("no")], prompt=[user("Is snow cold?")]),
    "conversational, no prompt": trl(
        [user("Is snow cold?"), assistant("yes")], [user("Is snow cold?"), assistant("no")], prompt=None
    ),
    "whole conversations beside a prompt": trl(
        [user("Is snow cold?"), assistant("yes")], [user("Is snow cold?"), assistant("no")]
    ),
}


@pytest.mark.parametrize("name", TRL_FORMS)
def test_trl_columns_become_a_record(write_jsonl, name):
    (record,) = read(write_jsonl({**TRL_FORMS[name], "id": 7, "source": "x"}))
    assert shown(record) == (["Is snow cold?"], [("yes", GOOD), ("no", POOR)])
    assert record.id == 7 and record.extra == {"source": "x"}


def test_trl_prompts_of_several_turns_keep_them(write_jsonl):
    turns = [{"role": "system", "content": "Be kind."}, user("Hi"), assistant("Hello"), user("Is snow cold?")]
    explicit = trl([assistant("yes")], [assistant("no")], prompt=turns)
    implicit = trl([*turns, assistant("yes")], [*turns, assistant("no")], prompt=None)
    one, two = read(write_jsonl(explicit, implicit))
    assert list(one.prompt) == list(two.prompt) == turns and shown(one)[1] == shown(two)[1]


@pytest.mark.parametrize(
    ("chosen", "rejected", "prompt", "answers"),
    [
        ("The sky is blue.", "The sky is green.", "The sky is", (" blue.", " green.")),
        # not in the midst of a word
        ("Snow is unkind", "Snow is unhappy", "Snow is", (" unkind", " unhappy")),
        ("Tell me:\nyes", "Tell me:\nno", "Tell me:", ("\nyes", "\nno")),
        ("A cat sat", "A cats sat", "A", (" cat sat", " cats sat")),
    ],
)
def test_the_implicit_prompt_of_plain_text_is_what_both_begin_with(write_jsonl, chosen, rejected, prompt, answers):
    (record,) = read(write_jsonl(trl(chosen, rejected, prompt=None)))
    assert shown(record)[0] == [prompt] and tuple(r.text for r in record.responses) == answers


def test_the_last_message_is_the_answer_even_where_all_are_the_same(write_jsonl):
    """Such a pair is counted as identical later; as a row it is no mistake."""
    turns = [user("Is snow cold?"), assistant("yes")]
    (record,) = read(write_jsonl(trl(turns, turns, prompt=None)))
    assert shown(record) == (["Is snow cold?"], [("yes", GOOD), ("yes", POOR)])


def test_trl_rows_can_declare_scales(write_jsonl):
    row = trl(chosen_scores={"wit": 9}, rejected_scores={"wit": 2}, scales={"wit": [1, 10]})
    (record,) = read(write_jsonl(row), ["wit"])
    assert record.scales == {"wit": Scale(1, 10)}


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (trl(chosen_scores=None), 'the row has no "chosen_scores"; it needs the scores of both'),
        (trl(rejected_scores=[3, 4]), '"rejected_scores" must map each objective to a number'),
        (trl(rejected=None), 'the row has no "rejected"'),
        (trl(chosen_scores={"helpfulness": 3}), "chosen has no score for objective 'correctness'"),
        (trl(chosen_scores={**GOOD, "helpfulness": 5}), "chosen for objective 'helpfulness' is 5, outside its scale 0"),
        (trl(chosen_scores={**GOOD, "helpfulness": "3"}), "is '3'; a finite number is needed"),
        (trl("  "), "the text of chosen is empty"),
        (trl(rejected=[assistant("no")]), 'both must be text, or both lists of messages, but "chosen" is str'),
        (trl("yes", "no", prompt=None), "the texts do not begin alike"),
        (trl("the same", "the same", prompt=None), "the texts do not begin alike and then differ"),
        (trl("Snow", "Snow is cold", prompt=None), "the texts do not begin alike and then differ"),
        (trl([user("a"), assistant("x")], [user("b"), assistant("y")], prompt=None), "begin with different messages"),
        (trl([assistant("x")], [assistant("y")], prompt=None), "begin with different messages"),
        (trl([], []), "begin with different messages"),
        (trl([], [assistant("y")], prompt=[user("a")]), '"chosen" must end with one message of the assistant'),
        (trl([assistant("x"), user("y")], [assistant("y")], prompt=[user("a")]), "but holds assistant, user"),
        (trl([user("x")], [user("y")], prompt=[user("a")]), "but holds user"),
        (trl(["x"], ["y"], prompt=[user("a")]), "but holds str"),
        (trl([{"role": "assistant"}], [assistant("y")], prompt=[user("a")]), 'in "chosen" has no "content"'),
        (
            trl([{**assistant("x"), "tool_calls": [1]}], [assistant("y")], prompt=[user("a")]),
            'in "chosen" has fields that are not read: tool_calls',
        ),
        (trl(tools=[{"name": "f"}]), '"tools" is not read, but changes the prompt'),
        (trl(chat_template_kwargs={"a": 1}), '"chat_template_kwargs" is not read'),
    ],
)
def test_a_bad_trl_row_is_named(write_jsonl, row, message):
    refused(write_jsonl(trl(), row), "data.jsonl, line 2: ", message)


def test_empty_columns_that_are_not_read_do_no_harm(write_jsonl):
    (record,) = read(write_jsonl(trl(tools=[], chat_template_kwargs={})))
    assert record.extra == {}
