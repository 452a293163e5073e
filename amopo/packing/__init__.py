"""Packed rows: several preference samples, end to end, in one forward."""

from amopo.packing.batching import TokenBudgetBatchSampler
from amopo.packing.layout import TreeLayout
from amopo.packing.pack import PackedBatch, pack, packed_length
from amopo.packing.sample import TokenizedSample, sample_id_to_int64

__all__ = [
    "PackedBatch",
    "TokenBudgetBatchSampler",
    "TokenizedSample",
    "TreeLayout",
    "pack",
    "packed_length",
    "sample_id_to_int64",
]
