"""Bounds by data sheet: their arithmetic, where the share of the peak comes from, and that they are labelled."""

from __future__ import annotations

import pytest

from bench.common import calculated
from bench.common.cases import SHAPES

A100 = "NVIDIA A100-SXM4-80GB"
SHAPE = next(shape for shape in SHAPES["cuda"] if (shape.hidden, shape.rows) == (3584, 8192))


def test_three_products_and_a_row_pass_by_hand():
    bound = calculated.bound_of(SHAPE, 3, calculated.DATA_SHEETS[A100])
    # 6 * 8192 * 152064 * 3584 = 26.788e12 FLOPs at 312e12 a second; 6 * 8192 * 152064 = 7.474e9 bytes at 2039e9
    assert bound.flops == 26_787_711_025_152 and bound.row_bytes == 7_474_249_728
    assert bound.product_seconds == pytest.approx(85.858e-3, rel=1e-5)
    assert bound.row_seconds == pytest.approx(3.66564e-3, rel=1e-5)
    assert bound.seconds == pytest.approx(89.524e-3, rel=1e-5)
    half = calculated.bound_of(SHAPE, 2, calculated.DATA_SHEETS[A100], share=0.5)
    assert half.product_seconds == pytest.approx(2 / 3 * 2 * bound.product_seconds)
    assert half.row_seconds == bound.row_seconds


def devices(median: float, device: str = "NVIDIA H200", **key) -> dict:
    key = {"shape": str(SHAPE), "dtype": "bfloat16", "inputs": "peaked", "provider": "products", **key}
    record = {"key": key, "stats": {"median": median}, "info": {"role": "floor"}}
    return {device: {"head_full": {"records": [record]}}}


def test_the_share_of_the_peak_comes_from_measured_products():
    seconds = 3 * SHAPE.product_flops / (0.8 * 989.5e12)
    shares = calculated.measured_shares(devices(seconds))
    assert shares == {("head_full", str(SHAPE)): (pytest.approx(0.8), "NVIDIA H200")}
    assert calculated.measured_shares(devices(seconds, "Box 9")) == {}
    assert calculated.measured_shares(devices(seconds, dtype="float32")) == {}
    assert calculated.measured_shares(devices(seconds, shape="cpu-head")) == {}


def rows_of(text: str) -> dict[tuple[str, str], list[str]]:
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines() if line[:1] == "|"]
    return {(row[0], row[1]): row[2:] for row in rows}


def test_the_table_has_every_gpu_shape_and_says_what_it_assumes():
    shares = calculated.measured_shares(devices(3 * SHAPE.product_flops / (0.8 * 989.5e12)))
    text = calculated.calculated_section(A100, shares)
    rows = rows_of(text)
    for shape in SHAPES["cuda"]:
        assert (str(shape), "trained") in rows and (str(shape), "frozen") in rows
    assert rows[str(SHAPE), "trained"] == ["26.8", "85.9", "7.5", "3.67", "89.5", "80% (NVIDIA H200)", "111"]
    assert rows[str(SHAPE), "frozen"][-2:] == ["not measured: at the data-sheet peak", "60.9"]
    for part in ("calculated, not measured", "Assumed", "312 TFLOP/s", "2,039 GB/s", "6 state bytes per logit"):
        assert part in text, part
