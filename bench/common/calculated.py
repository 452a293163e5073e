"""What the head must at least take on a device that was not measured: its products and its row pass, by data sheet.

    products    3 (trained weight) or 2 (frozen) times 2NVH FLOPs, at the dense bf16 peak, or at a share of it
    row pass    N * V logits at 6 state bytes each (fp32 read, bf16 written), at the bandwidth of the memory

The two run one after the other. The share is the one that the bare cuBLAS products reached, for the same shape, on a
device that was measured and whose peak is known.
"""

from __future__ import annotations

from dataclasses import dataclass

from bench.common.cases import SHAPES, HeadShape
from bench.common.row_forms import FORMS
from bench.common.tables import floor_of, grouped, milliseconds, table


@dataclass(frozen=True)
class DataSheet:
    """Dense bf16 FLOP/s and bytes per second of the device's memory, as the vendor states them."""

    bf16_flops: float
    bandwidth: float


DATA_SHEETS = {
    "NVIDIA A100-SXM4-80GB": DataSheet(312e12, 2039e9),
    "NVIDIA H200": DataSheet(989.5e12, 4800e9),  # stated as 1,979 TFLOP/s with sparsity: half of it without
}
CALCULATED = ("NVIDIA A100-SXM4-80GB",)
QUESTIONS = {"head_full": 3, "head_frozen": 2}  # and how many products each has
HEADER = [
    "shape", "weight", "products TFLOP", "products ms at the peak", "row pass GB", "row pass ms", "at least ms",
    "at the measured share of the peak", "at least ms at that share",
]  # fmt: skip

Shares = dict[tuple[str, str], tuple[float, str]]


@dataclass(frozen=True)
class Bound:
    """Seconds and amounts of one shape on one device."""

    flops: float
    product_seconds: float
    row_bytes: int
    row_seconds: float

    @property
    def seconds(self) -> float:
        return self.product_seconds + self.row_seconds


def bound_of(shape: HeadShape, products: int, sheet: DataSheet, share: float = 1.0) -> Bound:
    """The least time of a head with so many products, at a share of the peak."""
    flops = products * shape.product_flops
    row_bytes = shape.rows * shape.vocab * FORMS["fp32_to_bf16"].state_bytes
    return Bound(flops, flops / (share * sheet.bf16_flops), row_bytes, row_bytes / sheet.bandwidth)


def measured_shares(devices: dict[str, dict[str, dict]]) -> Shares:
    """(question, shape) -> (share of the peak that the bare bf16 products reached, device), where it was measured.

    Args:
        devices: results by device name, then by question. Of several devices or inputs the largest share counts.
    """
    shares: Shares = {}
    for device, results in devices.items():
        sheet = DATA_SHEETS.get(device)
        if sheet is None:
            continue
        for question, products in QUESTIONS.items():
            records = results.get(question, {"records": []})["records"]
            for (name, dtype, _), group in grouped(records, "shape", "dtype", "inputs").items():
                shape = next((shape for shape in SHAPES["cuda"] if str(shape) == name), None)
                floor = floor_of(group)
                if shape is None or floor is None or dtype != "bfloat16":
                    continue
                share = products * shape.product_flops / floor[1] / sheet.bf16_flops
                shares[question, name] = max(shares.get((question, name), (0.0, "")), (share, device))
    return shares


def calculated_section(device: str, shares: Shares) -> str:
    """The table as Markdown, with what it assumes."""
    sheet, rows = DATA_SHEETS[device], []
    for question, products in QUESTIONS.items():
        for shape in SHAPES["cuda"]:
            bound = bound_of(shape, products, sheet)
            share, where = shares.get((question, str(shape)), (None, None))
            rows.append([
                str(shape), "frozen" if products == 2 else "trained", f"{bound.flops / 1e12:.1f}",
                milliseconds(bound.product_seconds), f"{bound.row_bytes / 1e9:.1f}", milliseconds(bound.row_seconds),
                milliseconds(bound.seconds), *(
                    [f"{share:.0%} ({where})", milliseconds(bound_of(shape, products, sheet, share).seconds)]
                    if share is not None else ["not measured: at the data-sheet peak", milliseconds(bound.seconds)]
                ),
            ])  # fmt: skip
    lines = [
        "### Head: calculated, not measured",
        f"What the head must at least take on this device. Assumed: {sheet.bf16_flops / 1e12:g} TFLOP/s (data sheet, "
        f"dense bf16) for the {' or '.join(map(str, QUESTIONS.values()))} products of 2NVH FLOPs, or the share of the "
        f"peak that cuBLAS reached for the same shape on the device named; {sheet.bandwidth / 1e9:,.0f} GB/s (data "
        f"sheet) for the row pass at {FORMS['fp32_to_bf16'].state_bytes} state bytes per logit; one after the other; "
        "all of G kept, nothing rebuilt; no time for launches and for what is only as large as the hidden states.",
        table(HEADER, rows),
    ]
    return "\n\n".join(lines)
