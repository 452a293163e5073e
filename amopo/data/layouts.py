"""What the 2K sequences of preference samples take: padded, packed, shared.

`layout_costs(samples) -> [LayoutCost]`, in tokens over all samples. Padded batches hold 2K rows per sample, each as
long as the longest of the batch; packed rows are those of `amopo.packing.packed_size`. `padding` is the share of a
layout's tokens that belongs to no sequence; `ratio` compares it with packed rows without sharing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from amopo.packing import TokenizedSample, packed_size
from amopo.packing.trie import SHARING

PADDED_BATCHES = (1, 4)  # samples


@dataclass(frozen=True)
class LayoutCost:
    layout: str
    tokens: int
    per_sample: float
    ratio: float
    padding: float


def layout_costs(samples: Sequence[TokenizedSample]) -> list[LayoutCost]:
    """Padded at 1 and 4 samples per batch in their order, then packed with each kind of sharing."""
    written_out = sum(packed_size(sample, sharing="none").represented for sample in samples)
    tokens = {
        f"padded, {batch} {'pair' if batch == 1 else 'pairs'} a batch": padded_tokens(samples, batch)
        for batch in PADDED_BATCHES
    }
    padded = set(tokens)
    tokens |= {
        f"packed, sharing {sharing}": sum(packed_size(sample, sharing=sharing).tokens for sample in samples)
        for sharing in SHARING
    }
    return [
        LayoutCost(
            name, count, count / len(samples), count / written_out, 1 - written_out / count if name in padded else 0.0
        )
        for name, count in tokens.items()
    ]


def padded_tokens(samples: Sequence[TokenizedSample], batch: int) -> int:
    """Tokens of padded batches of that many samples, 2K rows each."""
    total = 0
    for start in range(0, len(samples), batch):
        part = samples[start : start + batch]
        longest = max(max(map(len, sample.prompts)) + max(len(sample.chosen), len(sample.rejected)) for sample in part)
        total += longest * sum(2 * sample.num_objectives for sample in part)
    return total
