"""Rankings of a prompt's responses, counted by hand."""

from __future__ import annotations

import math

import pytest

from amopo.evaluation.ranking import Ranked

# Response 0 is best overall, 1 is second but better in b, 2 is worst, 3 ties with 2 overall and differs in a and b.
ONE = Ranked(
    scores={"a": [4, 1, 1, 0], "b": [2, 4, 1, 2]},
    utilities=[3.0, 2.5, 1.0, 1.0],
    logps={
        "plain": [-1.0, -2.0, -3.0, -4.0],
        "a": [-4.0, -3.0, -2.0, -1.0],
        "b": [-2.0, -2.0, -1.0, -5.0],
    },
)


def test_pairs_are_those_whose_utilities_differ():
    assert ONE.overall("plain") == (5, 5)  # 2 and 3 tie
    assert ONE.overall("a") == (0, 5)


def test_equal_log_probs_are_half_right():
    # 0>1 half; 0>2 and 1>2 wrong; 0>3 and 1>3 right
    assert ONE.overall("b") == (2.5, 5)


def test_a_pair_conflicts_where_an_objective_prefers_the_overall_loser():
    # 0 against 1 (b prefers 1); 0 against 3: b ties, no conflict; 1 against 2 and 3: none
    assert ONE.overall("plain", conflicting=True) == (1, 1)
    assert ONE.overall("a", conflicting=True) == (0, 1)


def test_asked_for_an_objective_its_own_winner_is_right():
    # a: 0>1, 0>2, 0>3, 1>3, 2>3; the log-probs under "a" say the reverse
    assert ONE.own("a") == (0, 5)
    # b: 1>0 (half), 1>2 wrong, 1>3 right, 0>2 wrong, 3>2 wrong; 0 and 3 tie in b
    assert ONE.own("b") == (1.5, 5)
    assert ONE.own("b", conflicting=True) == (0.5, 1)
    assert ONE.own("a", conflicting=True) == (0, 1)


def test_the_margin_is_the_mean_difference_over_the_pairs():
    # 0-1: 1, 0-2: 2, 0-3: 3, 1-2: 1, 1-3: 2
    assert ONE.margin("plain") == pytest.approx(9 / 5)
    assert math.isnan(Ranked({"a": [1, 1]}, [1.0, 1.0], {"plain": [-1.0, -2.0]}).margin("plain"))


def test_the_first_of_a_ranking_is_scored_between_random_and_oracle():
    assert ONE.best("plain") == {"a": 4, "b": 2}
    assert ONE.best("a") == {"a": 0, "b": 2}
    assert ONE.oracle("b") == 4 and ONE.random("b") == pytest.approx(9 / 4)
    # of one response: 0 has the best mean, 3; the best of each objective would be 4
    assert ONE.oracle() == 3 and ONE.random() == pytest.approx((3 + 2.5 + 1 + 1) / 4)
