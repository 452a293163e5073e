"""Pairs: who wins, what is skipped, what is counted."""

from __future__ import annotations

from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from amopo.data import (
    DataError,
    PreferenceRecord,
    Response,
    Scale,
    add_overall,
    build_pairs,
    overall_weights,
    with_overall,
)

SCALES = {"a": Scale(0, 4), "b": Scale(1, 6)}


def record(*responses, id="r"):
    """A record from (text, score a, score b)."""
    made = tuple(Response(text, {"a": float(a), "b": float(b)}) for text, a, b in responses)
    return PreferenceRecord(id, ({"role": "user", "content": "x"},), made, "data.jsonl:7", SCALES)


def pair_texts(records, **options):
    pairs, report = build_pairs(records, objectives=("a", "b"), **options)
    return [(pair.chosen.text, pair.rejected.text) for pair in pairs], report


def test_the_larger_sum_of_normalised_scores_wins():
    found, _ = pair_texts([record(("low a", 2, 5.4), ("high a", 4, 3))])
    # 4/4 + 2/5 = 1.40 against 2/4 + 4.4/5 = 1.38, though the raw sums are 7 and 7.4.
    assert found == [("high a", "low a")]


def test_weights_move_the_winner_by_name_or_position():
    records = [record(("for a", 4, 1), ("for b", 0, 6))]
    assert pair_texts(records, weights={"b": 1, "a": 3})[0] == [("for a", "for b")]
    assert pair_texts(records, weights=[1, 3])[0] == [("for b", "for a")]
    assert pair_texts(records, weights=[0, 1e-9])[0] == [("for b", "for a")]


def test_best_against_worst_is_the_default_and_keeps_the_id():
    records = [record(("mid", 2, 3), ("worst", 0, 1), ("best", 4, 6), ("good", 4, 5), id=12)]
    pairs, report = build_pairs(records, objectives=("a", "b"))
    assert [(pair.id, pair.chosen.text, pair.rejected.text) for pair in pairs] == [(12, "best", "worst")]
    assert (report.records, report.pairs) == (1, 1)


def test_every_pair_on_request_each_with_an_id_of_its_own():
    records = [record(("mid", 2, 3), ("worst", 0, 1), ("best", 4, 6))]
    pairs, _ = build_pairs(records, objectives=("a", "b"), strategy="all")
    assert {(pair.id, pair.chosen.text, pair.rejected.text) for pair in pairs} == {
        ("r/0>1", "mid", "worst"),
        ("r/2>0", "best", "mid"),
        ("r/2>1", "best", "worst"),
    }


def test_ties_and_identical_texts_are_skipped_and_counted():
    decided = record(("x", 4, 6), ("y", 0, 1))
    tie = record(("x", 2, 3), ("y", 2, 3))
    # The same text was judged twice, differently: no preference to learn.
    same = record(("x", 4, 6), ("x", 0, 1))
    # One record with three ties among its responses counts once.
    tie_of_three = record(("x", 2, 3), ("y", 2, 3), ("z", 2, 3))
    found, report = pair_texts([decided, tie, tie_of_three, same])
    assert found == [("x", "y")]
    assert (report.records, report.pairs, report.ties, report.identical) == (4, 1, 2, 1)
    assert "skipped 2 ties and 1 with identical texts" in str(report)


def test_identical_texts_do_not_hide_another_pair_of_the_record():
    found, report = pair_texts([record(("x", 4, 6), ("x", 0, 1), ("y", 3, 4))])
    # x (4, 6) beats y by 0.65 in the sum, y beats x (0, 1) by 1.35: the larger difference is taken.
    assert found == [("y", "x")]
    assert report.identical == 0
    _, report = pair_texts([record(("x", 4, 6), ("x", 0, 1), ("y", 3, 4))], strategy="all")
    assert (report.pairs, report.identical) == (2, 1)


def test_rounding_makes_no_winner():
    # All sums are 6, but (0/5 + 0/5 + 3/5) / 3 and (0/5 + 1/5 + 2/5) / 3 differ in floating point.
    names = ("a", "b", "c")
    scales = dict.fromkeys(names, Scale(1, 6))
    responses = tuple(
        Response(str(s), dict(zip(names, s, strict=True))) for s in ((1.0, 1.0, 4.0), (1.0, 2.0, 3.0), (2.0, 2.0, 2.0))
    )
    tied = PreferenceRecord(0, (), responses, scales=scales)
    other = PreferenceRecord(
        1, (), (Response("x", dict.fromkeys(names, 6.0)), Response("y", dict.fromkeys(names, 1.0))), scales=scales
    )
    _, report = build_pairs([tied, other], objectives=names, strategy="all")
    assert (report.ties, report.pairs) == (3, 1)


def test_conflicts_are_counted_in_all_and_by_objective():
    conflict = record(("x", 4, 3), ("y", 0, 4))
    agree = record(("x", 4, 3), ("y", 0, 3))
    _, report = pair_texts([conflict, agree, conflict])
    assert report.conflicts == 2
    assert report.conflicts_by_objective == {"a": 0, "b": 2}


def test_strict_names_the_record_without_a_pair():
    good = record(("x", 4, 6), ("y", 0, 1))
    with pytest.raises(DataError, match="data.jsonl:7, record 'twin': its responses have identical texts"):
        build_pairs([good, record(("x", 4, 6), ("x", 0, 1), id="twin")], objectives=("a", "b"), strict=True)
    with pytest.raises(DataError, match="record 'even': its responses have scores that tie"):
        build_pairs([good, record(("x", 2, 3), ("y", 2, 3), id="even")], objectives=("a", "b"), strict=True)


def test_no_pair_at_all_is_an_error():
    with pytest.raises(DataError, match="no pair of responses can be compared.*1 ties"):
        build_pairs([record(("x", 2, 3), ("y", 2, 3))], objectives=("a", "b"))
    with pytest.raises(DataError, match="no pair of responses"):
        build_pairs([], objectives=("helpfulness",), scales={"helpfulness": Scale(0, 4)})


@pytest.mark.parametrize(
    "options, message",
    [
        ({"strategy": "random"}, "unknown strategy 'random'; known: best_worst, all"),
        ({"weights": [1]}, "weights has 1 numbers for 2 objectives"),
        ({"weights": {"a": 1, "c": 1}}, "weights are for a, c, objectives are a, b"),
        ({"weights": [1, -1]}, "weight of objective 'b' is -1"),
        ({"weights": [1, float("nan")]}, "weight of objective 'b' is nan"),
        ({"weights": [0, 0]}, "all weights are 0"),
        (
            {"scales": {"a": Scale(0, 3), "b": Scale(1, 6)}},
            "data.jsonl:7, record 'r': the score 4 for 'a' is outside its scale 0 to 3",
        ),
    ],
)
def test_options_that_cannot_be_used(options, message):
    with pytest.raises(ValueError, match=message):
        build_pairs([record(("x", 4, 6), ("y", 0, 1))], objectives=("a", "b"), **options)


def test_objectives_that_were_not_read():
    with pytest.raises(DataError, match="record 'r': a response has no score for objective 'verbosity'"):
        scales = {"a": Scale(0, 4), "verbosity": Scale(0, 4)}
        build_pairs([record(("x", 4, 6), ("y", 0, 1))], objectives=("a", "verbosity"), scales=scales)


@given(
    st.lists(st.tuples(st.integers(0, 4), st.integers(1, 6)), min_size=2, max_size=6),
    st.tuples(st.integers(0, 3), st.integers(1, 3)),
)
def test_pairs_agree_with_exact_arithmetic(scores, weights):
    exact = [weights[0] * Fraction(a, 4) + weights[1] * Fraction(b - 1, 5) for a, b in scores]
    expected = {(str(i), str(j)) for i in range(len(exact)) for j in range(len(exact)) if exact[i] > exact[j]}
    records = [record(*((str(i), a, b) for i, (a, b) in enumerate(scores)))]
    if not expected:
        with pytest.raises(DataError):
            pair_texts(records, weights=weights)
        return
    found, report = pair_texts(records, weights=weights, strategy="all")
    assert set(found) == expected and len(found) == len(expected)
    assert report.ties == len(scores) * (len(scores) - 1) // 2 - len(expected)
    ((winner, loser),), _ = pair_texts(records, weights=weights)
    assert exact[int(winner)] == max(exact) and exact[int(loser)] == min(exact)


def test_texts_that_differ_in_space_around_them_are_identical():
    found, report = pair_texts([record(("same", 4, 6), (" same\n", 0, 1)), record(("x y", 4, 6), ("xy", 0, 1), id="q")])
    assert found == [("x y", "xy")]
    assert report.identical == 1


def signed(records, **options):
    pairs, report = build_pairs(records, objectives=("a", "b"), orientation="per_objective", **options)
    return [(pair.chosen.text, pair.rejected.text, pair.signs) for pair in pairs], report


def test_one_winner_for_all_has_no_signs():
    pairs, _ = build_pairs([record(("x", 4, 1), ("y", 0, 6))], objectives=("a", "b"), weights=[2, 1])
    assert pairs[0].signs is None


def test_each_objective_prefers_what_it_scores_higher():
    records = [
        record(("x", 4, 3), ("y", 0, 3), id="tie in b"),
        record(("x", 4, 1), ("y", 0, 2), id="b prefers the other"),
        record(("x", 1, 1), ("y", 2, 3), id="agree"),
    ]
    found, report = signed(records)
    assert found == [
        ("x", "y", {"a": 1, "b": 0}),
        ("x", "y", {"a": 1, "b": -1}),
        ("y", "x", {"a": 1, "b": 1}),
    ]
    assert report.conflicts == 1 and report.conflicts_by_objective == {"a": 0, "b": 1}
    assert report.ties_by_objective == {"a": 0, "b": 1} and report.orientation == "per_objective"
    assert "ties masked (a 0, b 1)" in str(report)


def test_equal_utility_is_no_tie_where_objectives_disagree():
    opposed, tied = record(("x", 4, 1), ("y", 0, 6)), record(("x", 2, 3), ("y", 2, 3), id="t")
    decided = record(("x", 4, 6), ("y", 0, 1), id="d")
    found, report = signed([opposed, tied])
    assert found == [("x", "y", {"a": 1, "b": -1})] and report.ties == 1
    _, report = pair_texts([opposed, tied, decided])
    assert report.ties == 2, "as one winner for all, both are ties"
    with pytest.raises(DataError, match="different scores on an objective are needed"):
        signed([tied])


def test_between_equal_utilities_the_pair_that_differs_most_is_taken():
    close, far = ("close", 2, 3.5), ("far", 0, 6)  # 0.5 + 0.5, 0 + 1
    found, _ = signed([record(("x", 4, 1), close, far)])  # 1 + 0
    assert [row[:2] for row in found] == [("x", "far")]


SCORED = [("a0", 0, 1), ("a1", 1, 1), ("a2", 2, 1), ("a4", 4, 1)]


def test_n_pairs_per_prompt_are_those_with_the_largest_differences():
    records = [record(*SCORED), record(("p", 4, 6), ("q", 0, 1), id="s")]
    pairs, report = build_pairs(records, objectives=("a", "b"), strategy="all", pairs_per_prompt=3)
    # differences 4, 3, then 2 twice: the pair that stands first in the file
    assert [pair.id for pair in pairs] == ["r/3>0", "r/3>1", "r/2>0", "s/0>1"]
    assert report.pairs == 4 and report.ties == 0
    every, _ = build_pairs(records, objectives=("a", "b"), strategy="all", pairs_per_prompt=99)
    assert len(every) == 7 and {pair.id for pair in every} >= {pair.id for pair in pairs}


@pytest.mark.parametrize(
    "options, message",
    [
        ({"pairs_per_prompt": 2}, "has no meaning with the strategy 'best_worst'.*use the strategy 'all'"),
        ({"pairs_per_prompt": 0, "strategy": "all"}, "pairs_per_prompt must be an integer of at least 1"),
        ({"pairs_per_prompt": True, "strategy": "all"}, "pairs_per_prompt must be an integer"),
        ({"orientation": "both"}, "unknown orientation 'both'; known: overall, per_objective"),
    ],
)
def test_choices_that_cannot_be_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        build_pairs([record(*SCORED)], objectives=("a", "b"), **options)


@given(st.lists(st.tuples(st.integers(0, 4), st.integers(1, 6)), min_size=2, max_size=6), st.integers(1, 20))
def test_signs_are_the_signs_of_the_scores_themselves(scores, most):
    rows = record(*((f"t{i}", a, b) for i, (a, b) in enumerate(scores)))
    decided = record(("p", 4, 6), ("q", 0, 1), id="s")
    pairs, report = build_pairs(
        [rows, decided], objectives=("a", "b"), strategy="all", orientation="per_objective", pairs_per_prompt=most
    )
    assert len({pair.id for pair in pairs}) == len(pairs) == report.pairs
    for pair in pairs:
        for name in ("a", "b"):
            difference = pair.chosen.scores[name] - pair.rejected.scores[name]
            assert pair.signs[name] == (difference > 0) - (difference < 0)
        assert any(pair.signs.values())
    possible = sum(scores[i] != scores[j] for i in range(len(scores)) for j in range(i))
    assert len(pairs) == min(possible, most) + 1


def test_overall_is_the_weighted_mean_on_its_own_scale_and_decides():
    records = add_overall(
        [record(("x", 4, 1), ("y", 0, 6), ("z", 2, 3.5))], objectives=["a", "b"], scales=SCALES, weights=[3, 1]
    )
    assert [r.scores["overall"] for r in records[0].responses] == [3.0, 1.0, 2.0]
    assert records[0].scales["overall"] == Scale(0, 4) and records[0].scales["b"] == SCALES["b"]
    objectives = with_overall(["a", "b"])
    assert objectives == ["overall", "a", "b"]
    pairs, _ = build_pairs(
        records, objectives=objectives, weights=overall_weights(objectives), orientation="per_objective"
    )
    assert (pairs[0].chosen.text, pairs[0].rejected.text) == ("x", "y")
    assert pairs[0].signs == {"overall": 1, "a": 1, "b": -1}


def test_a_score_called_overall_is_not_written_over():
    row = record(("x", 4, 1), ("y", 0, 6))
    row.responses[0].scores["overall"] = 3.0
    with pytest.raises(DataError, match="data.jsonl:7, record 'r': a response has a score 'overall' already"):
        add_overall([row], objectives=["a", "b"], scales=SCALES)
    with pytest.raises(ValueError, match="'overall' is made of the others"):
        with_overall(["a", "overall"])


def test_scores_off_their_scale_make_no_overall_score():
    with pytest.raises(DataError, match="the score 9 for 'b' is outside its scale 1 to 6"):
        add_overall([record(("x", 4, 9), ("y", 0, 6))], objectives=["a", "b"], scales=SCALES)
