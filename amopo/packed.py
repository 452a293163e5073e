"""Response rows of packed batches: which hidden rows enter the head, and log-probs of all sequences from theirs.

A packed batch is `hidden [tokens, H]` with a `TreeLayout`. `packed_rows` takes the R rows that predict a response
token, each once, however many sequences share it; `fan_out` brings their log-probs `[R]` to those of the response
tokens of all sequences `[N]`. The sequences of a layout stand in the order (sample, objective, chosen | rejected).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from amopo_kernels.gather import gather_rows

if TYPE_CHECKING:
    from amopo.packing.layout import TreeLayout


def packed_rows(hidden: Tensor, layout: TreeLayout, num_objectives: int | None, vocab: int | None) -> Tensor:
    """The rows of `hidden` that enter the head, `[R, H]`; raises ValueError where hidden and layout do not fit."""
    if hidden.dim() == 3 and hidden.shape[0] == 1:
        hidden = hidden[0]
    if hidden.dim() != 2:
        raise ValueError(f"with a layout hidden must be [tokens, H] or [1, tokens, H], got {tuple(hidden.shape)}")
    if hidden.shape[0] < layout.num_tokens:
        raise ValueError(f"the layout describes {layout.num_tokens} tokens but hidden has {hidden.shape[0]} rows")
    if num_objectives is not None and num_objectives != layout.num_objectives:
        raise ValueError(f"num_objectives={num_objectives} but the layout has {layout.num_objectives}")
    if vocab is not None and layout.max_target >= vocab:
        raise ValueError(
            f"a target of the layout is {layout.max_target}, outside the vocabulary [0, {vocab}); check that tokenizer "
            "and model belong together"
        )
    if layout.rows is not None:
        return gather_rows(hidden[: layout.rows.num_rows], layout.rows)
    return hidden.index_select(0, layout.row_index)


def fan_out(logps: Tensor, layout: TreeLayout) -> Tensor:
    """Log-probs of the response tokens of all sequences `[N]` from those of the layout's rows `[R]`."""
    if layout.fan_out is None:
        return logps
    return logps.index_select(0, layout.fan_out) if layout.fan is None else gather_rows(logps, layout.fan)


def sequences_of(layout: TreeLayout) -> Tensor:
    """int64 `[B, K, 2]`: the sequences of a layout stand in that order."""
    return torch.arange(layout.num_sequences).view(layout.num_samples, layout.num_objectives, 2)


def is_oriented(layout: TreeLayout) -> bool:
    """Whether some objective of some sample prefers the rejected response, or neither."""
    return layout.preferred is not None or layout.present is not None
