"""Forward of the head: row chunks of logits to log-probs, unit gradients and kept G.

`head_forward(hidden[N, H], weight[V, H], bias, targets[N], lora_a[r, H], lora_b[V, r], call) -> HeadState`. Kept rows
come first, then the spill. See `linear_logprobs` for the method and `workspace` for the memory.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from amopo_kernels import dispatch
from amopo_kernels.head_call import HeadCall
from amopo_kernels.products import column_tiles
from amopo_kernels.row_pass import FP16_SCALE, RowState, gradient_factor
from amopo_kernels.vocab_parallel import VocabShard
from amopo_kernels.workspace import row_stride


class HeadState(NamedTuple):
    """logps `[N]`; and for the backward: U = G W `[N, H]`, G B `[N, r]`, kept G, row factors, r and S of the spill.

    What is not needed is a tensor without elements: operators return tensors only.
    """

    logps: Tensor
    unit_grad: Tensor
    unit_lora: Tensor
    kept: Tensor
    factor: Tensor
    reference: Tensor
    mass: Tensor
    total: Tensor


def head_forward(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    targets: Tensor,
    lora_a: Tensor | None,
    lora_b: Tensor | None,
    call: HeadCall,
) -> HeadState:
    rows, vocab = hidden.shape[0], weight.shape[0]
    plan, products, options = call.plan, call.products, call.options
    compute_weight = weight.to(products.compute)
    compute_bias = None if bias is None else bias.to(products.accumulate)
    shard = VocabShard.of(options.group, vocab)
    targets = shard.local_targets(targets)
    # fp16 cannot hold 2^12 * |W|: U is scaled back inside its product.
    unit_scale = 1.0 / FP16_SCALE if call.half_range else 1.0
    low_rank = None if lora_a is None else low_rank_rows(hidden, lora_a, options.lora_scale, products.compute)
    compute_b = None if lora_b is None else lora_b.to(products.compute)

    logps = torch.empty(rows, dtype=products.accumulate, device=hidden.device)
    state = RowState.empty(rows, products.accumulate, hidden.device)
    unit_grad = hidden.new_empty(hidden.shape if options.need_hidden else (0, 0), dtype=products.compute)
    rank = 0 if lora_b is None else lora_b.shape[1]
    unit_lora = hidden.new_empty((rows if rank and call.needs_g else 0, rank), dtype=products.compute)
    kept = _rows_of_logits(hidden, plan.kept_rows if call.stores_g else 0, vocab, products.compute)

    for chunk, logits, stored in _row_chunks(hidden, vocab, kept, call):
        products.project(hidden[chunk], compute_weight, out=logits, cast_cols=plan.cast_cols)
        if low_rank is not None:
            add_low_rank(logits, low_rank[chunk], compute_b, plan.block_rows)
        row_pass = dispatch.row_pass if shard.is_whole else shard.row_pass
        row_pass(
            logits,
            targets[chunk],
            compute_bias,
            call.transform,
            logp=logps[chunk],
            state=state.slice(chunk),
            out=stored,
            half_range=call.half_range,
            block_rows=plan.block_rows,
        )
        if options.need_hidden:
            products.times_weight(
                stored, compute_weight, out=unit_grad[chunk], cast_cols=plan.cast_cols, scale=unit_scale
            )
        if unit_lora.numel():
            products.times_weight(stored, compute_b, out=unit_lora[chunk], cast_cols=plan.cast_cols, scale=unit_scale)
        if kept.numel() and chunk.stop <= plan.kept_rows and stored.dtype != kept.dtype:
            kept[chunk].copy_(stored)

    def copied(vector: Tensor, wanted: bool, first: int = 0) -> Tensor:
        # An operator's outputs must not share memory with each other.
        return vector[first:].clone() if wanted else vector.new_empty(0)

    spilled = call.stores_g and plan.kept_rows < rows
    return HeadState(
        logps,
        unit_grad,
        unit_lora,
        kept,
        copied(gradient_factor(state, call.half_range), call.needs_g),
        *(copied(vector, spilled, plan.kept_rows) for vector in state),
    )


def _rows_of_logits(like: Tensor, rows: int, vocab: int, dtype: torch.dtype) -> Tensor:
    """Empty `[rows, V]` whose rows start aligned."""
    return like.new_empty((rows, row_stride(vocab)), dtype=dtype)[:, :vocab]


def low_rank_rows(hidden: Tensor, lora_a: Tensor, scale: float, dtype: torch.dtype) -> Tensor:
    """`scale * h A^T`, `[N, r]`."""
    return torch.mm(hidden, lora_a.to(dtype).t()).mul_(scale)


def add_low_rank(logits: Tensor, low_rank: Tensor, lora_b: Tensor, block_rows: int) -> None:
    """`logits += low_rank @ B^T`, in the dtype of the logits, by tiles as large as a row pass's block."""
    width = max(1, block_rows * logits.shape[1] // max(1, logits.shape[0]))
    rows = low_rank.to(logits.dtype)
    for tile in column_tiles(logits.shape[1], width):
        logits[:, tile].add_(torch.mm(rows, lora_b[tile].to(logits.dtype).t()))


def _row_chunks(
    hidden: Tensor, vocab: int, kept: Tensor, call: HeadCall
) -> Iterator[tuple[slice, Tensor, Tensor | None]]:
    """(rows, logits buffer, where G goes or None): kept rows first, then the spill."""
    plan, products, rows = call.plan, call.products, hidden.shape[0]
    in_place = products.logits == products.compute or products.policy == "upcast"
    kept_rows, first = plan.kept_rows if call.stores_g else 0, 0
    if kept_rows and products.policy == "native":
        yield slice(0, kept_rows), kept, kept
        first = kept_rows
    if first == rows:
        return
    size = plan.chunk_rows
    buffer = _rows_of_logits(hidden, min(size, rows - first), vocab, products.logits)
    spare = None
    edges = [*range(first, kept_rows, size), *range(max(first, kept_rows), rows, size), rows]
    for start, stop in zip(edges[:-1], edges[1:], strict=True):
        logits = buffer[: stop - start]
        if not call.needs_g:
            stored = None
        elif in_place:
            stored = logits
        elif stop <= kept_rows:
            stored = kept[start:stop]
        else:
            if spare is None:
                spare = _rows_of_logits(hidden, buffer.shape[0], vocab, products.compute)
            stored = spare[: stop - start]
        yield slice(start, stop), logits, stored
