"""The values of a layout, looked at on the host.

Contract: `check_layout(layout, vocab=V)` raises ValueError, naming sample, objective and response, for a sequence
without a response token, a row that lies outside of the packed row, or a target outside of the vocabulary. `pack`
makes none of these; a layout of another make, or paired with another model, can. It reads every index once, which
waits for the device where the layout stands on CUDA. Not looked at: `paths`, which attention reads.
"""

from __future__ import annotations

import torch
from torch import Tensor

from amopo.packing.layout import TreeLayout


def check_layout(layout: TreeLayout, *, vocab: int | None = None, is_part: bool = False) -> None:
    """Raise for indices that no packed row can have.

    Args:
        vocab: number of token ids of the head; None: not known, and not checked. is_part: the layout is one rank's
            piece of the sequences (`amopo.packing.shard`), some of which may have no token there.
    """
    offsets, row_index, row_target = layout.offsets.cpu(), layout.row_index.cpu(), layout.row_target.cpu()
    fan_out = None if layout.fan_out is None else layout.fan_out.cpu()
    rows = row_index.shape[0]
    tokens = rows if fan_out is None else fan_out.shape[0]
    lengths = offsets[1:] - offsets[:-1]
    if lengths.shape[0] != layout.num_sequences or offsets[0] != 0 or offsets[-1] != tokens or (lengths < 0).any():
        raise ValueError(
            f"layout.offsets must rise from 0 to {tokens}, the response tokens, in {layout.num_sequences + 1} steps; "
            f"got {tuple(offsets.shape)} from {int(offsets[0])} to {int(offsets[-1])}"
        )
    empty = (lengths == 0).nonzero().flatten()
    if len(empty) and not is_part:
        raise ValueError(
            f"{_name(int(empty[0]), layout)} has no response token; drop the sample or raise the truncation length"
        )
    if row_target.shape[0] != rows:
        raise ValueError(f"layout.row_target has {row_target.shape[0]} entries, but layout.row_index {rows}")
    if fan_out is not None and tokens and not 0 <= int(fan_out.min()) <= int(fan_out.max()) < rows:
        bad = _first((fan_out < 0) | (fan_out >= rows))
        raise ValueError(f"{_at(bad, offsets, layout)}: layout.fan_out is {int(fan_out[bad])}, of {rows} rows")
    of_token = torch.arange(tokens) if fan_out is None else fan_out
    for name, values, end, remedy in (
        ("row_index", row_index, layout.num_tokens, "the tokens of the packed row"),
        ("row_target", row_target, vocab, "the vocabulary; check that tokenizer and model belong together"),
    ):
        if end is None:
            continue
        outside = (values < 0) | (values >= end)
        if outside[of_token].any():
            bad = _first(outside[of_token])
            value = int(values[of_token[bad]])
            raise ValueError(f"{_at(bad, offsets, layout)}: layout.{name} is {value}, outside [0, {end}), {remedy}")


def _first(where: Tensor) -> int:
    return int(where.nonzero()[0])


def _at(token: int, offsets: Tensor, layout: TreeLayout) -> str:
    return _name(int(torch.searchsorted(offsets, token, right=True)) - 1, layout)


def _name(sequence: int, layout: TreeLayout) -> str:
    pair, side = divmod(sequence, 2)
    sample, objective = divmod(pair, layout.num_objectives)
    return f"sample {sample}, objective {objective}, {('chosen', 'rejected')[side]}"
