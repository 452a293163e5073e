"""The placebo's swap, and what the methods have in common."""

from __future__ import annotations

from amopo.packing.sample import TokenizedSample
from amopo.study.methods import METHODS, TITLES, swap_at_random


def samples(count: int) -> list[TokenizedSample]:
    return [TokenizedSample(([1, 2], [3, 4, n + 5]), [7, n], [8, n], f"task-{n}") for n in range(count)]


def swapped(before: list[TokenizedSample], after: list[TokenizedSample]) -> list[bool]:
    return [old.chosen != new.chosen for old, new in zip(before, after, strict=True)]


def test_a_fair_coin_decides_which_pairs_are_swapped():
    before = samples(2000)
    after = swap_at_random(before, seed=1)
    flags = swapped(before, after)
    # four standard deviations of a fair coin
    assert abs(sum(flags) - 1000) < 4 * (2000 * 0.25) ** 0.5
    runs = sum(a != b for a, b in zip(flags, flags[1:], strict=False))
    assert abs(runs - 1000) < 4 * (2000 * 0.25) ** 0.5  # neighbours are independent


def test_a_swapped_pair_has_the_same_responses_prompts_and_id():
    before = samples(50)
    for old, new in zip(before, swap_at_random(before, seed=1), strict=True):
        assert {tuple(new.chosen), tuple(new.rejected)} == {tuple(old.chosen), tuple(old.rejected)}
        assert (new.prompts, new.id) == (old.prompts, old.id)


def test_the_seed_decides_and_the_order_does_not():
    before = samples(200)
    assert swap_at_random(before, seed=1) == swap_at_random(before, seed=1)
    assert swap_at_random(before, seed=1) != swap_at_random(before, seed=2)
    assert swap_at_random(before[::-1], seed=1) == swap_at_random(before, seed=1)[::-1]


def test_the_methods_are_the_three_weights_one_term_and_the_placebo():
    by_name = {method.name: method for method in METHODS}
    assert [by_name[name].weights for name in ("gaussian", "mean", "uniform")] == ["gaussian", "mean", "uniform"]
    assert by_name["simpo"].plain and by_name["simpo"].objective == "simpo"
    # the placebo is AMoPO in everything but who won
    placebo, amopo = by_name["placebo"], by_name["gaussian"]
    assert placebo.swapped and (placebo.objective, placebo.weights, placebo.plain) == ("amopo", amopo.weights, False)
    assert [method.name for method in METHODS if method.is_amopo] == ["gaussian", "mean", "uniform"]
    assert set(TITLES) == {"start", *by_name}
