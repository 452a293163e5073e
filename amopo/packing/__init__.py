"""Packed rows: several preference samples, end to end, in one forward."""

from amopo.packing.batching import TokenBudgetBatchSampler
from amopo.packing.layout import TreeLayout, TreePaths
from amopo.packing.pack import PackedBatch, PackedSize, pack, packed_length, packed_size
from amopo.packing.sample import TokenizedSample, sample_id_to_int64
from amopo.packing.stored import SampleWriter, StoredSamplesError, TokenDataset
from amopo.packing.unpack import samples_of, unpack

__all__ = [
    "PackedBatch",
    "PackedSize",
    "SampleWriter",
    "StoredSamplesError",
    "TokenDataset",
    "TokenBudgetBatchSampler",
    "TokenizedSample",
    "TreeLayout",
    "TreePaths",
    "pack",
    "packed_length",
    "packed_size",
    "sample_id_to_int64",
    "samples_of",
    "unpack",
]
