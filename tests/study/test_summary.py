"""What results amount to, on made-up numbers."""

from __future__ import annotations

import math

import pytest

from amopo.study import summary, task_tables
from amopo.study.methods import METHODS
from amopo.study.record import plain

OBJECTIVES = ("a", "b")
PROMPTS = 8


def result(score: float, *, asked: dict[str, float] | None = None, margin: float = 0.0) -> dict:
    """A model that scores `score` on everything, and `asked[k]` on objective k when asked for it."""
    wave = [0.1 * (-1) ** n for n in range(PROMPTS)]

    def row(**scores: float) -> dict:
        values = {name: [scores.get(name, score) + w for w in wave] for name in OBJECTIVES}
        return {**values, "mean": [sum(v) / 2 for v in zip(*values.values(), strict=True)]}

    pairs = {"right": [1.0, 0.0] * (PROMPTS // 2), "pairs": [1, 1] * (PROMPTS // 2)}
    none = {"right": [0.0] * PROMPTS, "pairs": [0] * PROMPTS}
    variants = ("plain", *OBJECTIVES)
    return {
        "drawn": {"plain": row(), **{name: row(**{name: (asked or {}).get(name, score)}) for name in OBJECTIVES}},
        "likeliest": {"plain": row()},
        "margins": {variant: [margin + w for w in wave] for variant in variants},
        "ranking": {
            "overall": dict.fromkeys(variants, pairs),
            "overall_conflicting": dict.fromkeys(variants, pairs),
            "own": dict.fromkeys(OBJECTIVES, pairs),
            "own_conflicting": {"a": pairs, "b": none},
        },
    }


def study(rises: dict[str, tuple[float, float]], *, margins: dict[str, tuple[float, float]] | None = None) -> dict:
    """Two seeds that start at 2.0; each method ends that much higher."""
    found = {}
    for index, seed in enumerate((1, 2)):
        found[seed] = {"start": result(2.0)}
        for method in METHODS:
            rise = rises.get(method.name, (0.0, 0.0))[index]
            margin = (margins or {}).get(method.name, (0.5, 0.5))[index]
            found[seed][method.name] = result(2.0 + rise, margin=margin, asked={"a": 2.0 + rise + 0.3})
    return found


def checks(results: dict) -> dict[str, bool]:
    found = {
        "generated": summary.generated(results, OBJECTIVES),
        "margins": summary.margins(results, OBJECTIVES),
    }
    made = task_tables.checks(found, OBJECTIVES, smallest_rise=0.1, largest_placebo_rise=0.03)
    return {check.text: check.holds for check in made}


GOOD = {"gaussian": (0.3, 0.5), "mean": (0.2, 0.3), "uniform": (0.4, 0.4), "simpo": (0.6, 0.6), "placebo": (0.1, -0.1)}


def test_a_rise_is_relative_to_the_start_of_its_seed():
    found = summary.generated(study(GOOD), OBJECTIVES)["drawn"]["plain"]["mean"]
    assert found["gaussian"]["value"]["mean"] == pytest.approx(2.4)
    assert found["gaussian"]["change"]["per_seed"] == pytest.approx((0.3, 0.5))
    assert found["gaussian"]["relative"]["mean"] == pytest.approx(0.2)
    # every prompt rises by the same, so other prompts would show the same change
    assert found["gaussian"]["change"]["over_prompts"] == pytest.approx((0.4, 0.4))
    # 12.706 * 0.1
    assert found["gaussian"]["change"]["over_seeds"] == pytest.approx((0.4 - 1.2706, 0.4 + 1.2706), abs=1e-3)
    assert "change" not in found["start"]


def test_methods_are_compared_with_gaussian_amopo_whoever_wins():
    found = summary.generated(study(GOOD), OBJECTIVES)["drawn"]["plain"]["mean"]
    assert found["simpo"]["against_reference"]["mean"] == pytest.approx(0.2)
    assert found["mean"]["against_reference"]["per_seed"] == pytest.approx((-0.1, -0.2))
    assert "against_reference" not in found["gaussian"]


def test_the_matrix_says_what_asking_does():
    found = summary.controllability(study(GOOD), OBJECTIVES)["uniform"]
    assert found["matrix"] == [pytest.approx([2.7, 2.4]), pytest.approx([2.4, 2.4])]
    assert found["plain"] == pytest.approx([2.4, 2.4])
    assert found["over_plain"]["a"]["mean"] == pytest.approx(0.3) and found["over_plain"]["b"]["mean"] == pytest.approx(
        0
    )
    assert found["over_others"]["a"]["mean"] == pytest.approx(0.3)
    assert found["over_others_mean"]["mean"] == pytest.approx(0.15)


def test_all_checks_hold_where_they_should():
    found = checks(study(GOOD))
    assert len(found) == 7 and all(found.values())
    assert any(text.startswith("placebo") and "+0.0 %, at most +3 %" in text for text in found)


@pytest.mark.parametrize(
    ("rises", "margins", "failing"),
    [
        ({"placebo": (0.1, 0.1)}, {}, "placebo"),
        ({"mean": (0.1, 0.25)}, {}, "AMoPO, mean weights: mean score"),
        ({}, {"gaussian": (0.5, -0.01)}, "AMoPO, gaussian weights: every held-out margin"),
    ],
)
def test_a_check_fails_where_it_should_and_alone(rises, margins, failing):
    found = checks(study({**GOOD, **rises}, margins=margins))
    assert [text.startswith(failing) for text, holds in found.items() if not holds] == [True]


def test_a_check_does_not_ask_simpo_for_anything():
    assert all(checks(study({**GOOD, "simpo": (-1.0, -1.0)}, margins={"simpo": (-1, -1)})).values())


def test_accuracies_count_margins_above_zero():
    found = summary.accuracies(study(GOOD, margins={"simpo": (0.05, 0.05)}), OBJECTIVES)["plain"]
    assert found["gaussian"]["value"]["mean"] == 1.0
    assert found["simpo"]["value"]["mean"] == 0.5  # 0.05 - 0.1 is below 0 for every other pair


def test_rankings_are_shares_of_all_pairs_and_none_is_not_a_number():
    found = summary.rankings(study(GOOD), OBJECTIVES)
    assert found["overall"]["plain"]["simpo"]["value"]["mean"] == 0.5
    assert found["overall"]["pairs"]["plain"] == 2 * PROMPTS
    assert math.isnan(found["own_conflicting"]["b"]["simpo"]["value"]["mean"])
    assert plain(found)["own_conflicting"]["b"]["simpo"]["value"]["mean"] is None
