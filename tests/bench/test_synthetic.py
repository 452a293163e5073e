"""Random samples stand for real ones: their lengths are those of the quantiles that they are drawn from."""

from __future__ import annotations

import statistics

import pytest

from amopo.packing import packed_size
from bench.common import synthetic


def test_lengths_follow_the_quantiles():
    samples = synthetic.make_samples(600, vocab=1000)
    for lengths, quantiles in (
        ([len(sample.prompts[0]) for sample in samples], synthetic.PROMPT),
        ([len(sample.chosen) for sample in samples], synthetic.CHOSEN),
        ([len(sample.rejected) for sample in samples], synthetic.REJECTED),
    ):
        assert quantiles[0] <= min(lengths) and max(lengths) <= quantiles[-1]
        assert statistics.median(lengths) == pytest.approx(quantiles[3], rel=0.1)


def test_a_suffix_lets_all_prompts_share_x_and_a_prefix_only_their_head():
    for suffix, at_least in ((False, synthetic.HEAD), (True, synthetic.PROMPT[0] - synthetic.TEMPLATE)):
        for sample in synthetic.make_samples(20, vocab=100_000, suffix=suffix):
            pair, tree = (packed_size(sample, sharing=sharing).tokens for sharing in ("pair", "tree"))
            assert pair - tree >= 3 * at_least


def test_the_same_seed_gives_the_same_samples():
    assert synthetic.make_samples(3, vocab=50) == synthetic.make_samples(3, vocab=50)
    assert synthetic.make_samples(3, vocab=50) != synthetic.make_samples(3, vocab=50, seed=1)
