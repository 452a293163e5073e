"""Intervals, against tables, closed forms and counting by hand."""

from __future__ import annotations

import math

import pytest
import torch

from amopo.evaluation.statistics import Resamples, estimate, t_interval, t_quantile

# Two-sided critical values as printed in any table of Student's t.
TABLE = [
    (0.95, 1, 12.706),
    (0.95, 2, 4.303),
    (0.95, 3, 3.182),
    (0.95, 4, 2.776),
    (0.95, 5, 2.571),
    (0.95, 10, 2.228),
    (0.95, 30, 2.042),
    (0.95, 120, 1.980),
    (0.90, 4, 2.132),
    (0.90, 7, 1.895),
    (0.99, 2, 9.925),
    (0.99, 9, 3.250),
]


@pytest.mark.parametrize(("level", "degrees", "value"), TABLE)
def test_t_quantiles_are_those_of_the_table(level, degrees, value):
    assert t_quantile(level, degrees) == pytest.approx(value, abs=6e-4)


def test_the_interval_over_seeds_is_mean_and_t_times_standard_error():
    low, high = t_interval([1.0, 2.0, 3.0, 4.0, 5.0])
    # standard deviation 1.5811, standard error 0.7071, t with 4 degrees of freedom 2.776
    assert (low, high) == pytest.approx((3 - 2.7764 * 0.70711, 3 + 2.7764 * 0.70711), abs=1e-3)


def test_one_seed_has_no_interval_over_seeds():
    assert t_interval([1.0]) is None


@pytest.mark.parametrize(("level", "degrees", "named"), [(1.0, 3, "level"), (0.0, 3, "level"), (0.95, 0, "degrees")])
def test_impossible_quantiles_are_refused(level, degrees, named):
    with pytest.raises(ValueError, match=named):
        t_quantile(level, degrees)


def test_the_bootstrap_of_a_mean_is_as_wide_as_the_normal_interval():
    values = torch.randn(900, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    found = estimate(Resamples([900], count=4000).means([values.tolist()]))
    error = float(values.std(correction=0)) / 30
    assert found.mean == pytest.approx(float(values.mean()), abs=1e-12)
    assert found.over_prompts[0] == pytest.approx(found.mean - 1.96 * error, abs=0.15 * error)
    assert found.over_prompts[1] == pytest.approx(found.mean + 1.96 * error, abs=0.15 * error)


def test_the_mean_over_seeds_of_a_bootstrap_is_narrower_by_the_root_of_their_number():
    generator = torch.Generator().manual_seed(4)
    values = [torch.randn(400, generator=generator).tolist() for _ in range(4)]
    one = estimate(Resamples([400], count=4000).means(values[:1])).over_prompts
    four = estimate(Resamples([400] * 4, count=4000).means(values)).over_prompts
    assert (four[1] - four[0]) / (one[1] - one[0]) == pytest.approx(0.5, abs=0.06)


def test_prompts_are_drawn_within_their_seed():
    # Were prompts of one seed drawn for another, these means would vary.
    found = estimate(Resamples([7, 9]).means([[1.0] * 7, [5.0] * 9]))
    assert found.per_seed == (1.0, 5.0) and found.mean == 3.0
    assert found.over_prompts == pytest.approx((3.0, 3.0))
    # 12.706 * 2.8284 / 1.4142
    assert found.over_seeds == pytest.approx((3 - 25.412, 3 + 25.412), abs=2e-3)


def test_two_tables_of_the_same_resamples_compare_prompt_by_prompt():
    before = [[1.0, 4.0, 2.0, 8.0, 5.0]]
    after = [[value + 0.5 for value in before[0]]]
    resamples = Resamples([5])
    difference = estimate(resamples.means(after) - resamples.means(before))
    assert difference.over_prompts == pytest.approx((0.5, 0.5)) and difference.mean == pytest.approx(0.5)
    # The means themselves are not that sure.
    width = estimate(resamples.means(before)).over_prompts
    assert width[1] - width[0] > 2


def test_a_ratio_is_of_sums_and_not_a_mean_of_ratios():
    resamples = Resamples([3])
    found = estimate(resamples.ratios([[1.0, 0.0, 3.0]], [[1.0, 2.0, 3.0]]))
    assert found.mean == pytest.approx(4 / 6)
    assert found.over_prompts[0] == pytest.approx(0.0) and found.over_prompts[1] == pytest.approx(1.0)


def test_resamples_without_a_pair_are_left_out_and_none_at_all_is_not_a_number():
    rare = estimate(Resamples([30]).ratios([[1.0] + [0.0] * 29], [[1.0] + [0.0] * 29]))
    assert rare.mean == 1.0 and rare.over_prompts == pytest.approx((1.0, 1.0))
    none = estimate(Resamples([3]).ratios([[0.0] * 3], [[0.0] * 3]))
    assert math.isnan(none.mean) and math.isnan(none.over_prompts[0])


def test_the_same_seed_gives_the_same_interval_and_another_one_another():
    values = [[1.0, 4.0, 2.0, 8.0, 5.0, 7.0, 7.5]]
    first, again, other = (estimate(Resamples([7], seed=s).means(values)).over_prompts for s in (0, 0, 1))
    assert first == again and first != other


@pytest.mark.parametrize(
    ("values", "named"), [([[1.0, 2.0]], "1 seeds|of 1 seeds"), ([[1.0, 2.0], [1.0]], "seed number 1 has 1 values")]
)
def test_values_of_other_sizes_are_refused(values, named):
    with pytest.raises(ValueError, match=named):
        Resamples([2, 2]).means(values)


def test_a_seed_without_prompts_is_refused():
    with pytest.raises(ValueError, match="at least one prompt"):
        Resamples([3, 0])
