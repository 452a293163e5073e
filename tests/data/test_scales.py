"""Scales: where they come from, what is no scale."""

from __future__ import annotations

import math

import pytest

from amopo.data import DataError, PreferenceRecord, Scale, parse_scales, read_records, resolve_scales, scales_of
from amopo.data.scales import as_scales, check_objectives
from amopo.data.schema import show_number


def test_a_scale_maps_its_ends_to_zero_and_one():
    scale = Scale(1, 6)
    assert [scale.normalise(score) for score in (1, 3.5, 6)] == [0.0, 0.5, 1.0]
    assert 1 in scale and 6 in scale and 0.99 not in scale and 6.01 not in scale


@pytest.mark.parametrize("low, high", [(1, 1), (2, 1), (0, math.inf), (math.nan, 1), ("0", 4), (True, 4)])
def test_a_scale_needs_two_finite_ordered_numbers(low, high):
    with pytest.raises(DataError, match="a scale needs"):
        Scale(low, high)


HELPSTEER2 = ("helpfulness", "correctness", "coherence", "complexity", "verbosity")


def test_given_beats_declared():
    declared = {"coherence": Scale(1, 5), "quality": Scale(1, 6)}
    found = resolve_scales(("coherence", "quality"), declared=declared, given={"quality": Scale(0, 10)})
    assert found == {"coherence": Scale(1, 5), "quality": Scale(0, 10)}


def test_an_undeclared_scale_names_the_objective_and_three_remedies():
    with pytest.raises(DataError, match="scale of objective 'quality' is not known") as error:
        resolve_scales(("wit", "quality"), given={"wit": Scale(0, 1)})
    for remedy in ('scales={"quality": Scale(low, high)}', "--scales quality=low:high", '"scales": {"quality"'):
        assert remedy in str(error.value)
    assert "HelpSteer2" not in str(error.value)


def test_a_name_alone_tells_no_scale_but_where_it_comes_from_the_flag_is_shown():
    with pytest.raises(DataError, match="scale of objective 'helpfulness' is not known") as error:
        resolve_scales(("wit", "helpfulness", "coherence"), given={"wit": Scale(0, 1)})
    assert "(scores of HelpSteer2 go from 0 to 4: --scales helpfulness=0:4,coherence=0:4)" in str(error.value)


def rows_of(form, scores):
    """Two responses with these scores in a form of rows, without a declared scale."""
    one, two = scores
    return {
        "grouped": [{"prompt": "p", "responses": [{"text": "a", "scores": one}, {"text": "b", "scores": two}]}],
        "trl": [{"prompt": "p", "chosen": "a", "rejected": "b", "chosen_scores": one, "rejected_scores": two}],
        "amopo": [{"prompt": "p", "chosen": {"response": "a", **one}, "rejected": {"response": "b", **two}}],
        "helpsteer2": [{"prompt": "p", "response": "a", **one}, {"prompt": "p", "response": "b", **two}],
    }[form]


@pytest.mark.parametrize("form", ["grouped", "trl"])
def test_scores_on_another_scale_under_a_known_name_are_no_silent_helpsteer2(write_jsonl, form):
    # on 1 to 5, and no score happens to be a 5
    path = write_jsonl(*rows_of(form, ({"helpfulness": 4}, {"helpfulness": 1})))
    with pytest.raises(DataError, match="line 1: the scale of objective 'helpfulness' is not known"):
        read_records(path, objectives=["helpfulness"])
    (record,) = read_records(path, objectives=["helpfulness"], scales={"helpfulness": [1, 5]})
    assert record.scales == {"helpfulness": Scale(1, 5)}


@pytest.mark.parametrize("form", ["amopo", "helpsteer2"])
def test_the_forms_of_helpsteer2_declare_its_five_scales_and_no_other(write_jsonl, form):
    scores = dict.fromkeys((*HELPSTEER2, "wit"), 3), dict.fromkeys((*HELPSTEER2, "wit"), 1)
    path = write_jsonl(*rows_of(form, scores))
    (record,) = read_records(path, objectives=HELPSTEER2)
    assert record.scales == dict.fromkeys(HELPSTEER2, Scale(0, 4))
    (record,) = read_records(path, objectives=["helpfulness"], scales={"helpfulness": [1, 5]})
    assert record.scales == {"helpfulness": Scale(1, 5)}
    with pytest.raises(DataError, match="scale of objective 'wit' is not known"):
        read_records(path, objectives=["wit"])
    low = rows_of(form, ({"helpfulness": 5}, {"helpfulness": 1}))
    with pytest.raises(DataError, match="is 5.*outside its scale 0 to 4"):
        read_records(write_jsonl(*low), objectives=["helpfulness"])


def test_a_released_row_may_declare_another_scale(write_jsonl):
    (row,) = rows_of("amopo", ({"helpfulness": "5"}, {"helpfulness": "1"}))
    (record,) = read_records(write_jsonl({**row, "scales": {"helpfulness": [1, 5]}}), objectives=["helpfulness"])
    assert record.scales == {"helpfulness": Scale(1, 5)}
    with pytest.raises(DataError, match="line 1: scales must map each objective"):
        read_records(write_jsonl({**row, "scales": 5}), objectives=["helpfulness"])


def test_scales_from_the_command_line():
    assert parse_scales(" a=1:6, b=-0.5:4 ,") == {"a": Scale(1, 6), "b": Scale(-0.5, 4)}
    assert parse_scales("") == {}


@pytest.mark.parametrize("text", ["a", "a=1", "a=1-6", "a=x:6", "=1:6", "a=1:6:7"])
def test_unreadable_command_line_text_is_shown_with_an_example(text):
    with pytest.raises(DataError, match="cannot read the scale .*write objective=low:high"):
        parse_scales(text)


def test_command_line_scales_must_be_scales_and_unique():
    with pytest.raises(DataError, match="objective 'a'.*low < high"):
        parse_scales("a=6:1")
    with pytest.raises(DataError, match="objective 'a' is given twice"):
        parse_scales("a=1:6,a=1:5")


def test_scales_from_a_configuration_file():
    assert as_scales({"a": [1, 6]}) == {"a": Scale(1, 6)}
    with pytest.raises(DataError, match="scale of objective 'a' must be"):
        as_scales({"a": 6})
    with pytest.raises(DataError, match="scales must map"):
        as_scales([1, 6])


def test_records_must_agree_on_a_scale():
    def record(name, high):
        return PreferenceRecord(name, (), (), f"f:{name}", {"quality": Scale(1, high)})

    assert scales_of([record("1", 6), record("2", 6)]) == {"quality": Scale(1, 6)}
    with pytest.raises(DataError, match="f:2, record '2' scores 'quality' on 1 to 5, but f:1, record '1' on 1 to 6"):
        scales_of([record("1", 6), record("2", 5)])


@pytest.mark.parametrize(
    "objectives, message",
    [
        ((), r"objectives is empty \(K = 0\)"),
        (("a", "b", "a"), "objective 'a' is given twice"),
        ("helpfulness", r"not one string; write \['helpfulness'\]"),
        (("a", " "), "number 2 is ' '"),
        (("a", 3), "number 2 is 3"),
    ],
)
def test_objectives_are_distinct_names_and_at_least_one(objectives, message):
    with pytest.raises(DataError, match=message):
        check_objectives(objectives)


@pytest.mark.parametrize(
    ("value", "text"),
    [(4.0, "4"), (5.5, "5.5"), (2.346, "2.35"), (-0.001, "0"), (-1.5, "-1.5"), (1234567.0, "1234567"), (100.0, "100")],
)
def test_numbers_are_shown_plainly(value, text):
    assert show_number(value) == text
    assert str(Scale(value, 1e8)) == f"{text} to 100000000"
