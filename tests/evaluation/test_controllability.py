"""What asking for an objective does, by hand."""

from __future__ import annotations

import pytest
import torch

from amopo.evaluation.controllability import matrix, over_others, over_plain

OBJECTIVES = ("a", "b", "c")
SCORES = {
    "plain": {"a": 2.0, "b": 2.0, "c": 2.0},
    "a": {"a": 3.0, "b": 1.0, "c": 2.5},
    "b": {"a": 1.5, "b": 2.5, "c": 2.5},
    "c": {"a": 2.5, "b": 2.0, "c": 2.5},
}


def test_rows_are_what_was_asked_for_and_columns_what_was_scored():
    assert matrix(SCORES, OBJECTIVES) == [[3.0, 1.0, 2.5], [1.5, 2.5, 2.5], [2.5, 2.0, 2.5]]


def test_asking_is_compared_with_not_asking():
    assert [over_plain(SCORES, name) for name in OBJECTIVES] == [1.0, 0.5, 0.5]


def test_asking_is_compared_with_asking_for_the_others():
    assert over_others(SCORES, "a", OBJECTIVES) == pytest.approx(3.0 - (1.5 + 2.5) / 2)
    assert over_others(SCORES, "b", OBJECTIVES) == pytest.approx(2.5 - (1.0 + 2.0) / 2)


def test_a_template_that_lifts_everything_alike_controls_nothing():
    # c rises by 0.5 whatever was asked for
    assert over_plain(SCORES, "c") == 0.5 and over_others(SCORES, "c", OBJECTIVES) == 0.0


def test_bootstrap_tables_are_compared_entry_by_entry():
    tables = {asked: {scored: torch.tensor([v, v + 1]) for scored, v in row.items()} for asked, row in SCORES.items()}
    assert over_others(tables, "a", OBJECTIVES).tolist() == [1.0, 1.0]


def test_a_single_objective_has_no_others():
    with pytest.raises(ValueError, match="'a' is the only objective"):
        over_others({"a": {"a": 1.0}}, "a", ["a"])
