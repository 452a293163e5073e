"""Bytes of the row pass, counted both ways."""

from __future__ import annotations

import pytest

from bench.common.row_forms import FORMS, of_copy


def test_state_bytes_and_asked_bytes():
    counted = {name: (form.state_bytes, form.asked_bytes) for name, form in FORMS.items()}
    assert counted == {
        "fp32_to_bf16": (6, 6), "fp32_to_fp16": (6, 10), "fp32_in_place": (8, 12), "bf16_in_place": (4, 6),
    }  # fmt: skip
    assert [name for name, form in FORMS.items() if form.in_place] == ["fp32_in_place", "bf16_in_place"]


def test_shares_of_the_copy_by_both_counts():
    info = of_copy(FORMS["bf16_in_place"], "triton", seconds=2.0, copy_seconds=1.0, logits=1000)
    assert (info["bytes"], info["asked_bytes"]) == (4000, 6000)
    assert (info["bandwidth"], info["asked_bandwidth"]) == (2000.0, 3000.0)
    assert (info["of_copy"], info["asked_of_copy"]) == (0.5, 0.75)


def test_the_copy_asks_for_what_it_moves_and_eager_is_not_counted():
    copy = of_copy(FORMS["fp32_in_place"], "copy", 1.0, 1.0, 10)
    assert copy["asked_bytes_per_logit"] == copy["bytes_per_logit"] == 8 and copy["asked_of_copy"] == 1.0
    eager = of_copy(FORMS["fp32_in_place"], "eager", 4.0, 1.0, 10)
    assert eager["of_copy"] == pytest.approx(0.25) and not any(name.startswith("asked") for name in eager)


def test_no_share_without_the_copy():
    assert "of_copy" not in of_copy(FORMS["bf16_in_place"], "cpp", 1.0, None, 10)
