"""Throughput and memory over the steps."""

from __future__ import annotations

from collections.abc import Sequence

from amopo.report.figures.panel import Figure
from amopo.report.figures.single import absent_of, panel_of
from amopo.report.run import Run

CAPTION = (
    "Tokens of the packed rows per second, of all devices. Sequences written out hold more tokens, since what they "
    "share is computed once; the second panel counts those. The first point may be low: it holds the warm-up. "
    "Memory is the peak so far: on CUDA of torch's allocator on the first device, on a CPU of the whole process, "
    "libraries included. Fill is the part of tokens_per_batch that batches use."
)
METRICS = (
    ("tokens_per_second", "tokens per second", "tokens/s"),
    ("represented_tokens_per_second", "tokens per second, written out", "tokens/s"),
    ("amopo/peak_memory_gib", "peak memory", "GiB"),
    ("amopo/fill", "fill of the batches", "share"),
)


def build(runs: Sequence[Run]) -> Figure:
    panels = [
        panel for key, title, unit in METRICS if (panel := panel_of(runs, key, title, unit, from_zero=True)) is not None
    ]
    return Figure("speed", "Throughput and memory", CAPTION, panels, absent_of(runs, METRICS))
