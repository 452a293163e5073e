"""The study on rated responses, in small."""

from __future__ import annotations

import pytest

from amopo.data import DataError
from amopo.study.methods import METHODS
from amopo.study.runner import run_study
from amopo.study.settings import SUMMEVAL
from amopo.study.summeval import OBJECTIVES, SummevalStudy

from .conftest import TINY_RATED


def test_what_is_ranked_first_is_rated_between_the_bounds(rated, tmp_path, console):
    study = SummevalStudy(TINY_RATED, rated)
    methods = [method for method in METHODS if method.name in ("gaussian", "simpo")]
    results = run_study(study, seeds=[1, 2], folder=tmp_path / "out", console=console, methods=methods)
    found = study.summarise(results)
    for name in (*OBJECTIVES, "mean"):
        for method in ("start", "gaussian", "simpo"):
            value = found["best"]["plain"][name][method]["value"]["mean"]
            assert 1 <= value <= found["bounds"]["oracle"][name]["mean"] <= 5
            difference = found["over_random"][name][method]["mean"]
            assert difference == pytest.approx(value - found["bounds"]["random"][name]["mean"])
    # ratings of five versions go through 1 to 5 once, so one at random has 3 and the best 5
    assert found["bounds"]["random"]["coherence"]["mean"] == pytest.approx(3)
    assert found["bounds"]["oracle"]["coherence"]["mean"] == pytest.approx(5)
    assert len(results[1]["start"]["best"]["plain"]["mean"]) == 3  # three of ten prompts are held out
    assert study.checks(found) == [] and len(study.tables(found)) == 10
    titles = [table.title for table in study.tables(found)]
    assert len(set(titles)) == len(titles)


def test_training_pairs_are_drawn_by_the_seed_and_hold_no_held_out_prompt(rated, tmp_path):
    study = SummevalStudy(TINY_RATED, rated)
    one, again, other = (study.read(tmp_path, seed) for seed in (1, 1, 2))
    assert one.train.pairs == again.train.pairs != other.train.pairs
    assert len(one.train.pairs) == TINY_RATED.pairs == 4
    held_out = {record.prompt[0]["content"] for record in one.evaluation.records}
    assert len(held_out) == 3 and not held_out & {pair.prompt[0]["content"] for pair in one.train.pairs}


def test_too_few_pairs_for_the_steps_are_refused(rated, tmp_path):
    with pytest.raises(DataError, match=f"give .* pairs, but the study takes {SUMMEVAL.pairs}; give more data"):
        SummevalStudy(SUMMEVAL, rated).read(tmp_path, 1)


def test_other_data_is_another_study(rated):
    before = SummevalStudy(TINY_RATED, rated).fingerprint()
    rated.write_text(rated.read_text().replace("Story 1", "Story one"))
    assert SummevalStudy(TINY_RATED, rated).fingerprint() != before
