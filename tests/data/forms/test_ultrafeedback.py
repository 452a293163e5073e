"""UltraFeedback's rows: what they become, what is left out, and what each bad row says."""

from __future__ import annotations

import copy
import logging

import pytest
from form_rows import ASPECTS, completion, instruction, read, refused

from amopo.data import ReadReport, Scale


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
