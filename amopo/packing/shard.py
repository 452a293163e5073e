"""One rank's part of a packed row, for sequence parallelism.

Contract
--------
`shard(batch, rank, size)` cuts the row `[1, T]` of a `PackedBatch` (on the host) into `size` pieces of `T / size`
tokens and returns piece `rank` as a `PackedBatch`: its `input_ids` and `position_ids` `[1, T / size]`, and a layout of
the same samples and sequences that lists this piece's rows and response tokens only. Attention sees the whole row (an
all-to-all turns pieces of tokens into pieces of heads, as DeepSpeed Ulysses does), so `paths` stay those of the row.

A hidden row stands with the token that it predicts from, so every response token belongs to one rank. A rank may have
none: its layout then has no rows. The log-probs go to `loss_from_logps(..., sequence_parallel=group)`.

Unsupported (raises): a row that does not divide; pack it with `pad_to_multiple_of=size`.
"""

from __future__ import annotations

import dataclasses

import torch

from amopo.packing.pack import PackedBatch
from amopo_kernels.gather import GatherIndex


def shard(batch: PackedBatch, rank: int, size: int) -> PackedBatch:
    """Piece `rank` of `size` of a packed batch."""
    tokens = batch.input_ids.shape[1]
    if size < 1 or not 0 <= rank < size:
        raise ValueError(f"rank {rank} does not exist among {size} ranks of a sequence")
    if tokens % size:
        raise ValueError(f"a row of {tokens} tokens does not divide over {size} ranks; pack(pad_to_multiple_of={size})")
    if batch.input_ids.device.type != "cpu":
        raise ValueError("shard() takes a batch on the host; move its pieces to the device")
    width = tokens // size
    start, stop = rank * width, (rank + 1) * width
    layout = batch.layout

    here = (layout.row_index >= start) & (layout.row_index < stop)
    row_index = layout.row_index[here] - start
    entries = torch.arange(len(here)) if layout.fan_out is None else layout.fan_out
    kept = here[entries]
    before = torch.cat([torch.zeros(1, dtype=torch.int64), kept.cumsum(0)])
    fan_out = (here.cumsum(0) - 1)[entries[kept]]
    has_own_rows = len(fan_out) == len(row_index) and torch.equal(fan_out, torch.arange(len(fan_out)))
    local = dataclasses.replace(
        layout,
        row_index=row_index,
        row_target=layout.row_target[here],
        fan_out=None if has_own_rows else fan_out,
        offsets=before[layout.offsets],
        num_tokens=max(0, min(stop, layout.num_tokens) - start),
        # Counted once, with the first piece, so that a sum over ranks is that of the row.
        represented_tokens=layout.represented_tokens if rank == 0 else 0,
        rows=None if layout.rows is None else GatherIndex.of(row_index, width),
        fan=None if has_own_rows else GatherIndex.of(fan_out, len(row_index)),
    )
    return PackedBatch(batch.input_ids[:, start:stop], batch.position_ids[:, start:stop], local, batch.sample_ids)
