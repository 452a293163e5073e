"""The forms of preference rows that others publish: what each becomes, and what each bad row says."""

from __future__ import annotations

import copy
import logging

import pytest

from amopo.data import DataError, ReadReport, Scale, read_records

GOOD, POOR = {"helpfulness": 3, "correctness": 4}, {"helpfulness": 1, "correctness": 2}
OBJECTIVES = ("helpfulness", "correctness")
ASPECTS = ("instruction_following", "truthfulness", "honesty", "helpfulness")


def user(text):
    return {"role": "user", "content": text}


def assistant(text):
    return {"role": "assistant", "content": text}


def read(path, objectives=OBJECTIVES, **options):
    return read_records(path, objectives=objectives, **options)


def shown(record):
    """Prompt as text, and each response with its scores."""
    return [m["content"] for m in record.prompt], [(r.text, dict(r.scores)) for r in record.responses]


def refused(path, *parts, objectives=OBJECTIVES, **options):
    with pytest.raises(DataError) as error:
        read(path, objectives, **options)
    for part in (str(path), *parts):
        assert part in str(error.value), str(error.value)


# TRL


def trl(chosen="yes", rejected="no", **fields):
    row = {"prompt": "Is snow cold?", "chosen": chosen, "rejected": rejected}
    row |= {"chosen_scores": GOOD, "rejected_scores": POOR, "scales": dict.fromkeys(OBJECTIVES, [0, 4])}
    return {name: value for name, value in (row | fields).items() if value is not None}


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


# The released form of AMoPO


def released(chosen=None, rejected=None, **fields):
    row = {
        "prompt": "Is snow cold?",
        "chosen": {"response": "yes", "helpfulness": "3", "correctness": "4"} | (chosen or {}),
        "rejected": {"response": "no", "helpfulness": "1", "correctness": "2"} | (rejected or {}),
    }
    return row | fields


def test_the_released_form_is_read_from_an_array_and_from_lines(write_json, write_jsonl):
    rows = [released(id="a", source="x"), released({"helpfulness": 2.5})]
    for path in (write_json(rows), write_jsonl(*rows)):
        one, two = read(path)
        assert shown(one) == (["Is snow cold?"], [("yes", GOOD), ("no", POOR)])
        assert one.id == "a" and one.extra == {"source": "x"}
        assert two.responses[0].scores == {"helpfulness": 2.5, "correctness": 4}
        # an array has no lines of its own
        assert two.id == ("row-2" if path.suffix == ".json" else "line-2")


def test_the_released_form_may_carry_turn_markers_or_messages(write_json):
    marked = "Hi\n<extra_id_1>Assistant\nHello\n<extra_id_1>User\nIs snow cold?"
    turns = [user("Hi"), assistant("Hello"), user("Is snow cold?")]
    one, two = read(write_json([released(prompt=marked), released(prompt=turns)]))
    assert list(one.prompt) == list(two.prompt) == turns


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (released({"helpfulness": "high"}), "chosen for objective 'helpfulness' is 'high'; a finite number is needed"),
        (released({"helpfulness": "nan"}), "chosen for objective 'helpfulness' is nan"),
        (released(rejected={"correctness": "5"}), "rejected for objective 'correctness' is 5.0, outside its scale"),
        (released(rejected={"response": ""}), "the text of rejected is empty"),
        (released() | {"rejected": "no"}, '"rejected" must be an object with "response" and scores'),
        ({"prompt": "x", "chosen": {"helpfulness": "3"}, "rejected": {}}, '"chosen" has no "response"'),
        ({"prompt": "x", "chosen": {"response": "y"}}, 'the row has no "rejected"'),
        (released(prompt="a<extra_id_1>b"), "the turn marker '<extra_id_1>' without User"),
    ],
)
def test_a_bad_released_row_is_named(write_jsonl, row, message):
    refused(write_jsonl(released(), row), "data.jsonl, line 2: ", message)


def test_a_score_that_the_released_form_lacks_is_named(write_jsonl):
    row = released()
    del row["rejected"]["correctness"]
    refused(write_jsonl(released(), row), "line 2: rejected has no score for objective 'correctness'")


# HelpSteer2


def helpsteer2(*prompts, **fields):
    return [{"prompt": p, "response": t, **GOOD, **fields} for p in prompts for t in ("a", "b")]


@pytest.mark.parametrize(
    ("text", "roles"),
    [
        ("Is snow cold?", ["user"]),
        ("Hi\n<extra_id_1>Assistant\nHello\n<extra_id_1>User\nIs snow cold?", ["user", "assistant", "user"]),
        # of the same family: a marker before the first turn, a header of the answer at the end, a system turn
        ("<extra_id_1>User\nIs snow cold?\n<extra_id_1>Assistant\n", ["user"]),
        ("<extra_id_0>System\nBe kind.\n<extra_id_1>User\nIs snow cold?", ["system", "user"]),
        ("<extra_id_0>System\n\n<extra_id_1>User\nIs snow cold?\n<extra_id_1>Assistant\n", ["user"]),
    ],
)
def test_helpsteer2_prompts_become_turns(write_jsonl, text, roles):
    (record,) = read(write_jsonl(*helpsteer2(text)))
    assert [m["role"] for m in record.prompt] == roles
    assert record.prompt[-1]["content"] == "Is snow cold?"
    assert not any("extra_id" in m["content"] or m["content"] != m["content"].strip() for m in record.prompt)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a <extra_id_1> b", "the prompt holds the turn marker '<extra_id_1>' without User, Assistant or System"),
        ("a\n<extra_id_1>Robot\nb", "the turn marker '<extra_id_1>'"),
        ("a\n<extra_id_1>Assistant\nb", "the prompt's last message must be from the user"),
        ("a\n<extra_id_1>Assistant\n\n<extra_id_1>User\nb", "the content of message 2 of the prompt is empty"),
    ],
)
def test_turns_that_cannot_be_told_are_refused(write_jsonl, text, message):
    refused(write_jsonl(*helpsteer2("fine"), *helpsteer2(text)), "line 3: ", message)


def test_a_helpsteer2_row_without_a_response_is_named(write_jsonl):
    refused(write_jsonl(*helpsteer2("p"), {"prompt": "p"}), "line 3: the row has no \"response\"; it has 'prompt'")


# UltraFeedback


def completion(text="an answer", **ratings):
    ratings = dict.fromkeys(ASPECTS, "4") | ratings
    notes = {name: {"Rating": rating, "Rationale": "because"} for name, rating in ratings.items()}
    return {"model": "m", "response": text, "annotations": notes, "overall_score": 7.5}


def instruction(*completions, **fields):
    return {"source": "s", "instruction": "Is snow cold?", "completions": list(completions), **fields}


def test_ultrafeedback_ratings_become_scores_from_1_to_5(write_jsonl):
    row = instruction(completion("a", helpfulness="5"), completion("b", honesty="1"), completion("c"))
    (record,) = read(write_jsonl(row), ASPECTS)
    assert [r.text for r in record.responses] == ["a", "b", "c"]
    assert record.responses[0].scores == dict.fromkeys(ASPECTS, 4.0) | {"helpfulness": 5.0}
    # helpfulness is 0 to 4 in HelpSteer2: the form's own scale goes first
    assert record.scales == dict.fromkeys(ASPECTS, Scale(1, 5))
    assert record.extra == {"source": "s"}


def test_the_callers_scale_wins_over_the_forms(write_jsonl):
    path = write_jsonl(instruction(completion("a"), completion("b")))
    assert read(path, ["honesty"], scales={"honesty": [0, 10]})[0].scales == {"honesty": Scale(0, 10)}


@pytest.mark.parametrize("unrated", ["N/A", "n/a", "", None])
def test_responses_without_a_rating_are_left_out_and_counted(write_jsonl, unrated):
    full = instruction(completion("a"), completion("b", honesty=unrated), completion("c"))
    short = instruction(completion("d"), completion("e", honesty=unrated))
    path = write_jsonl(full, short, instruction())
    report = ReadReport()
    (record,) = read(path, ["honesty", "helpfulness"], report=report)
    assert [r.text for r in record.responses] == ["a", "c"]
    assert (report.responses_unrated, report.records_unrated) == (2, 2)
    assert "left out 2 responses without a rating (N/A)" in str(report)
    assert "left out 2 prompts with fewer than two rated responses (line 2, line 3)" in str(report)
    # where it is not asked for, nothing is missing
    report = ReadReport()
    assert len(read(path, ["helpfulness"], report=report)) == 2 and report.responses_unrated == 0


def test_what_is_left_out_is_logged_where_no_report_is_asked_for(write_jsonl, caplog):
    path = write_jsonl(instruction(completion("a"), completion("b", honesty="N/A"), completion("c")))
    with caplog.at_level(logging.WARNING):
        read(path, ["honesty"])
    assert "left out 1 responses without a rating" in caplog.text


def test_a_file_without_any_rating_is_refused(write_jsonl):
    path = write_jsonl(instruction(completion("a", honesty="N/A"), completion("b", honesty="N/A")))
    refused(path, "no prompt has two responses with a rating on honesty", objectives=["honesty"])


def edited(change):
    row = copy.deepcopy(instruction(completion("a"), completion("b")))
    change(row)
    return row


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (instruction(completion("a", honesty="6"), completion("b")), "'honesty' is 6.0, outside its scale 1 to 5"),
        (instruction(completion("a", honesty="0"), completion("b")), "'honesty' is 0.0, outside its scale 1 to 5"),
        (instruction(completion("a", honesty="good"), completion("b")), "'honesty' is 'good'; a finite number"),
        (instruction(completion("a"), completion("")), "the text of completion 2 is empty"),
        (edited(lambda row: row.pop("instruction")), 'the row has no "instruction"'),
        (edited(lambda row: row.update(instruction=" ")), "the content of message 1 of the prompt is empty"),
        (edited(lambda row: row.update(completions={})), '"completions" must be a list, but is dict'),
        (edited(lambda row: row["completions"].append("x")), "completion 3 must be an object"),
        (edited(lambda row: row["completions"][0].pop("annotations")), 'completion 1 has no "annotations"'),
        (edited(lambda row: row["completions"][0].update(annotations=[])), 'the "annotations" of completion 1 must'),
        (
            edited(lambda row: row["completions"][0]["annotations"].update(honesty="4")),
            "the annotation of completion 1 for 'honesty' must be an object with a \"Rating\"",
        ),
    ],
)
def test_a_bad_ultrafeedback_row_is_named(write_jsonl, row, message):
    good = instruction(completion("a"), completion("b"))
    refused(write_jsonl(good, row), "data.jsonl, line 2: ", message, objectives=["honesty"])


def test_a_misspelt_aspect_lists_those_in_the_file(write_jsonl):
    path = write_jsonl(instruction(completion("a"), completion("b")))
    refused(
        path,
        "no response has a score for objective 'kindness'; objectives in the file: instruction_following",
        objectives=["kindness"],
    )


# All forms


@pytest.mark.parametrize(
    ("rows", "bad"),
    [
        ([trl(), trl(), trl()], trl(chosen_scores={})),
        ([released(), released(), released()], released({"helpfulness": "9"})),
        (helpsteer2("p", "q", "r"), {"prompt": "x", "response": "y", **GOOD}),
        (
            [instruction(completion("a"), completion("b"))] * 3,
            instruction(completion("a", helpfulness="9"), completion("b")),
        ),
    ],
    ids=["trl", "amopo", "helpsteer2", "ultrafeedback"],
)
def test_bad_rows_can_be_skipped_and_told(write_jsonl, rows, bad):
    errors = []
    path = write_jsonl(*rows[:2], bad, '{"broken', *rows[2:])
    records = read(path, ["helpfulness"], on_error=errors.append)
    assert len(records) == 3
    assert [error.line for error in errors] in ([3, 4], [4, 3])
    assert all(str(error).startswith(str(path)) for error in errors)
