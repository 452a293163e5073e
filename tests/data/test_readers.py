"""Readers: what a file becomes, and what each broken file says."""

from __future__ import annotations

import gzip
import json

import pytest

from amopo.data import DataError, Scale, read_records
from amopo.data.readers import FORMATS

GOOD = {"helpfulness": 3, "correctness": 4}
POOR = {"helpfulness": 1, "correctness": 2.5}
OBJECTIVES = ("helpfulness", "correctness")


def read(path, objectives=OBJECTIVES, **options):
    return read_records(path, objectives=objectives, **options)


# What is read


def test_a_grouped_row_becomes_a_record(write_jsonl, grouped_row):
    path = write_jsonl(
        grouped_row(GOOD, {**POOR, "verbosity": 9}, id="a", topic="weather"), "", grouped_row(POOR, GOOD)
    )
    first, second = read(path)
    assert first.id == "a"
    assert first.prompt == ({"role": "user", "content": "What is snow?"},)
    assert [(r.text, r.scores) for r in first.responses] == [("answer 0", GOOD), ("answer 1", POOR)]
    assert first.extra == {"topic": "weather"}
    assert first.scales == {"helpfulness": Scale(0, 4), "correctness": Scale(0, 4)}
    # The blank line counts: line numbers are those an editor shows.
    assert (second.id, second.source) == ("line-3", f"{path}:3")


def test_chat_messages_stay_as_they_are(write_jsonl, grouped_row):
    messages = [
        {"role": "system", "content": "Be kind."},
        {"role": "user", "content": "Hi"},
        {"role": "assistant", "content": "Hello"},
        {"role": "user", "content": "What is snow?"},
    ]
    (record,) = read(write_jsonl(grouped_row(GOOD, POOR, prompt=messages)))
    assert list(record.prompt) == messages


def test_consecutive_helpsteer2_rows_with_one_prompt_are_one_record(write_jsonl):
    def row(prompt, response, scores):
        return {"prompt": prompt, "response": response, **scores, "verbosity": 2}

    path = write_jsonl(row("p", "a", GOOD), row("p", "b", POOR), row("q", "c", POOR), row("q", "d", GOOD))
    records = read(path)
    assert [[r.text for r in record.responses] for record in records] == [["a", "b"], ["c", "d"]]
    assert [record.source for record in records] == [f"{path}:1", f"{path}:3"]
    assert records[1].responses[1].scores == GOOD


def test_turn_markers_of_helpsteer2_become_messages(write_jsonl):
    prompt = "Hi\n<extra_id_1>Assistant\nHello\nyou\n<extra_id_1>User\nWhat is snow?"
    rows = [{"prompt": prompt, "response": text, **GOOD} for text in ("a", "b")]
    (record,) = read(write_jsonl(*rows))
    assert [(m["role"], m["content"]) for m in record.prompt] == [
        ("user", "Hi"),
        ("assistant", "Hello\nyou"),
        ("user", "What is snow?"),
    ]


def test_the_format_can_be_named(write_jsonl, grouped_row):
    path = write_jsonl(grouped_row(GOOD, POOR))
    assert read(path, format="grouped") == read(path)
    with pytest.raises(DataError, match='line 1: the row has no "response"'):
        read(path, format="helpsteer2")
    with pytest.raises(ValueError, match="unknown format 'csv'; known: auto, grouped, trl, amopo, helpsteer2"):
        read(path, format="csv")


def test_compressed_files_and_byte_order_marks_are_read(tmp_path, grouped_row):
    text = "\ufeff" + json.dumps(grouped_row(GOOD, POOR, prompt="Wo liegt Köln?"), ensure_ascii=False)
    path = tmp_path / "data.jsonl.gz"
    path.write_bytes(gzip.compress(text.encode()))
    (record,) = read(path)
    assert record.prompt[0]["content"] == "Wo liegt Köln?"


def test_a_record_can_declare_its_scales_and_the_caller_overrides_them(write_jsonl, grouped_row):
    path = write_jsonl(grouped_row({"quality": 6}, {"quality": 1}, scales={"quality": [1, 6]}))
    assert read(path, ["quality"])[0].scales == {"quality": Scale(1, 6)}
    assert read(path, ["quality"], scales={"quality": [0, 10]})[0].scales == {"quality": Scale(0, 10)}


# What is refused


def refused(path, *parts, objectives=OBJECTIVES, **options):
    with pytest.raises(DataError) as error:
        read(path, objectives, **options)
    message = str(error.value)
    assert message.startswith(str(path)), message
    for part in parts:
        assert part in message, message


def test_a_missing_file(tmp_path):
    refused(tmp_path / "none.jsonl", "none.jsonl: the file does not exist")


def test_a_folder_instead_of_a_file(tmp_path):
    refused(tmp_path, "the file cannot be read")


@pytest.mark.parametrize("rows", [(), ("", "  ")])
def test_an_empty_file(write_jsonl, rows):
    refused(write_jsonl(*rows), "data.jsonl: the file is empty; it needs one JSON object per line")


def test_a_broken_line(write_jsonl, grouped_row):
    refused(write_jsonl(grouped_row(GOOD, POOR), '{"prompt": "x",'), "data.jsonl, line 2: broken JSON", "fix or remove")


def test_a_line_that_is_no_object(write_jsonl, grouped_row):
    refused(write_jsonl(grouped_row(GOOD, POOR), "[1, 2]"), "data.jsonl, line 2: each line must hold one JSON object")


def test_an_object_over_many_lines(write_jsonl):
    refused(write_jsonl("{", '"prompt": "x"', "}"), "line 1: broken JSON", "an object must stand on one line")


def test_text_that_is_not_utf8(tmp_path):
    path = tmp_path / "data.jsonl"
    path.write_bytes(b'{"prompt": "K\xf6ln"}\n')
    refused(path, "line 1: the line is not UTF-8 text")


def test_a_damaged_compressed_file(tmp_path):
    path = tmp_path / "data.jsonl.gz"
    path.write_bytes(gzip.compress(b"{}" * 1000)[:-9])
    refused(path, "the file cannot be read")


def test_a_row_of_no_known_format_lists_the_forms(write_jsonl):
    path = write_jsonl({"prompt": "x", "answers": ["a", "b"]})
    refused(path, "line 1: cannot tell the format from the fields 'prompt', 'answers'", 'grouped: "prompt" and')
    for form in FORMATS[1:]:
        refused(path, f"{form}: ")


def test_a_row_of_two_forms_names_both_and_the_remedy(write_jsonl, grouped_row):
    path = write_jsonl(grouped_row(GOOD, POOR, response="x"))
    refused(path, "line 1: the fields", "fit several forms, grouped and helpsteer2; name one with --format")
    assert len(read(path, format="grouped")) == 1


@pytest.mark.parametrize("line", ['{"a": ' * 100_000, '{"a": ' + "9" * 5000 + "}"], ids=["deep", "long number"])
def test_json_beyond_what_can_be_parsed(write_jsonl, line):
    refused(write_jsonl(line), "line 1: the JSON cannot be read", "fix or remove")


def test_half_a_character(write_jsonl, grouped_row):
    path = write_jsonl(grouped_row(GOOD, POOR, texts=["a", "b\ud83d"]))
    refused(path, "line 1: the text of response 2 holds half a character, '\\ud83d'")
    refused(
        write_jsonl(grouped_row(GOOD, POOR, prompt="\ud83d?")),
        "line 1: the content of message 1 of the prompt holds half",
    )


def test_a_later_row_of_another_format(write_jsonl, grouped_row):
    refused(write_jsonl(grouped_row(GOOD, POOR), {"prompt": "x"}), 'line 2: the row has no "responses"')


def test_a_missing_score(write_jsonl, grouped_row):
    path = write_jsonl(grouped_row(GOOD, POOR), grouped_row(GOOD, {"helpfulness": 1}))
    refused(path, "data.jsonl, line 2: response 2 has no score for objective 'correctness'")


def test_a_missing_score_in_helpsteer2_rows_names_the_row(write_jsonl):
    rows = [{"prompt": "p", "response": "a", **GOOD}, {"prompt": "p", "response": "b", "helpfulness": 1}]
    refused(write_jsonl(*rows), "data.jsonl, line 2: the response has no score for objective 'correctness'")


@pytest.mark.parametrize(
    "score, shown",
    [
        ("true", "True"),
        ("NaN", "nan"),
        ("Infinity", "inf"),
        ('"3"', "'3'"),
        ("null", "None"),
        ("1" + "0" * 400, "1000"),
    ],
)
def test_a_score_that_is_no_finite_number(write_jsonl, grouped_row, score, shown):
    text = json.dumps(grouped_row(GOOD, {**POOR, "correctness": "HERE"})).replace('"HERE"', score)
    path = write_jsonl(grouped_row(GOOD, POOR), text)
    refused(
        path, f"line 2: the score of response 2 for objective 'correctness' is {shown}", "a finite number is needed"
    )


@pytest.mark.parametrize("score", [-0.5, 4.5])
def test_a_score_outside_its_scale(write_jsonl, grouped_row, score):
    path = write_jsonl(grouped_row(GOOD, {**POOR, "correctness": score}))
    refused(path, f"line 1: the score of response 2 for objective 'correctness' is {score:g}, outside its scale 0 to 4")


def test_an_objective_that_nobody_scored_lists_those_in_the_file(write_jsonl, grouped_row):
    path = write_jsonl(grouped_row(GOOD, {**POOR, "verbosity": 1}))
    refused(
        path,
        "no response has a score for objective 'charm'; objectives in the file: helpfulness, correctness, verbosity",
        objectives=["helpfulness", "charm"],
    )


def test_an_objective_without_a_scale(write_jsonl, grouped_row):
    path = write_jsonl(grouped_row({"charm": 1}, {"charm": 2}))
    refused(
        path, "line 1: the scale of objective 'charm' is not known", "--scales charm=low:high", objectives=["charm"]
    )


def test_a_malformed_scale_in_a_record(write_jsonl, grouped_row):
    path = write_jsonl(grouped_row({"charm": 1}, {"charm": 2}, scales={"charm": [3, 3]}))
    refused(path, "line 1: scale of objective 'charm'", "low < high", objectives=["charm"])


@pytest.mark.parametrize("text", ["", "  \n"])
def test_an_empty_response(write_jsonl, grouped_row, text):
    refused(write_jsonl(grouped_row(GOOD, POOR, texts=["a", text])), "line 1: the text of response 2 is empty")


def test_a_response_that_is_no_text(write_jsonl, grouped_row):
    refused(
        write_jsonl(grouped_row(GOOD, POOR, texts=["a", 7])),
        "line 1: the text of response 2 must be a string, but is int",
    )


def test_malformed_responses(write_jsonl, grouped_row):
    refused(write_jsonl({"prompt": "x", "responses": "a"}), '"responses" must be a list, but is str')
    refused(write_jsonl({"prompt": "x", "responses": ["a"]}), 'response 1 must be an object with "text" and "scores"')
    refused(write_jsonl({"prompt": "x", "responses": [{"text": "a"}]}), "response 1 has no \"scores\"; it has 'text'")
    refused(write_jsonl(grouped_row([3], [4])), "the scores of response 1 must map each objective to a number")


@pytest.mark.parametrize("count", [0, 1])
def test_fewer_than_two_responses(write_jsonl, grouped_row, count):
    path = write_jsonl(grouped_row(GOOD, POOR), grouped_row(*[GOOD] * count))
    refused(path, f"line 2: the prompt has {count} response(s); at least 2 are needed")


def test_a_helpsteer2_prompt_that_stands_alone(write_jsonl):
    rows = [{"prompt": prompt, "response": text, **GOOD} for prompt, text in (("p", "a"), ("p", "b"), ("q", "c"))]
    refused(write_jsonl(*rows), "line 3: the prompt has 1 response(s)")


USER = {"role": "user", "content": "x"}


@pytest.mark.parametrize(
    "prompt, message",
    [
        (7, "the prompt must be a string or a list of messages, but is int"),
        ("  ", "the content of message 1 of the prompt is empty"),
        ([], "the prompt has no messages"),
        (["x"], 'message 1 of the prompt must be an object with "role" and "content"'),
        ([{"role": "user"}], 'message 1 of the prompt must be an object with "role" and "content"'),
        ([{"role": "robot", "content": "x"}, USER], "role 'robot'; roles are system, user, assistant"),
        ([{"role": ["user"], "content": "x"}], "message 1 of the prompt has the role ['user']"),
        ([{"role": "user", "content": ["x"]}], "content of message 1 of the prompt must be a string, but is list"),
        ([{**USER, "tool_calls": []}], "fields that are not read: tool_calls"),
        ([USER, {"role": "assistant", "content": "y"}], "last message must be from the user, but is from 'assistant'"),
    ],
)
def test_a_malformed_prompt(write_jsonl, grouped_row, prompt, message):
    refused(write_jsonl(grouped_row(GOOD, POOR), grouped_row(GOOD, POOR, prompt=prompt)), "line 2:", message)


@pytest.mark.parametrize("bad", [-1, 2**63, 1.5, True, ["a"]])
def test_an_id_that_is_neither_text_nor_a_natural_number(write_jsonl, grouped_row, bad):
    refused(write_jsonl(grouped_row(GOOD, POOR, id=bad)), "line 1:", "sample id")


def test_an_id_that_occurs_twice(write_jsonl, grouped_row):
    path = write_jsonl(grouped_row(GOOD, POOR, id=5), grouped_row(GOOD, POOR, id=6), grouped_row(GOOD, POOR, id=5))
    refused(path, "line 3: the id 5 stands on line 1 already")


@pytest.mark.parametrize("objectives, message", [((), "K = 0"), (("a", "a"), "given twice")])
def test_objectives_are_checked_before_the_file_is_opened(tmp_path, objectives, message):
    with pytest.raises(DataError, match=message):
        read(tmp_path / "none.jsonl", objectives)


def test_ids_that_are_equal_as_text_are_refused(write_jsonl, grouped_row):
    scores = ({"helpfulness": 1}, {"helpfulness": 2})
    path = write_jsonl(grouped_row(*scores, id=1), grouped_row(*scores, id="1", prompt="And rain?"))
    with pytest.raises(DataError, match="line 2: the id '1' stands on line 1 already; ids must be unique"):
        read_records(path, objectives=["helpfulness"])
