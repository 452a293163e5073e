"""Backward of the head: the late upstream gradient scales rows; what was not kept is rebuilt by vocabulary tiles.

    q  = -c * scale * factor            [N]
    dH = q * U + s (q * G B) A          dW = G^T (q * h)      db = G^T q
    dB = G^T (q * s h A^T)              dA = s (q * G B)^T h

Every entry of dW, db and dB is one product over all N rows, rounded once.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from amopo_kernels import dispatch
from amopo_kernels.head_call import HeadCall
from amopo_kernels.head_forward import HeadState, add_low_rank, low_rank_rows
from amopo_kernels.products import column_tiles
from amopo_kernels.row_pass import FP16_SCALE, RowState
from amopo_kernels.vocab_parallel import VocabShard


class HeadGradients(NamedTuple):
    """Gradients; a tensor without elements where none is wanted."""

    hidden: Tensor
    weight: Tensor
    bias: Tensor
    lora_a: Tensor
    lora_b: Tensor


def head_backward(
    grad_logps: Tensor,
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    targets: Tensor,
    lora_a: Tensor | None,
    lora_b: Tensor | None,
    state: HeadState,
    call: HeadCall,
) -> HeadGradients:
    options, products = call.options, call.products
    scale = -1.0 if options.logit_scale is None else -options.logit_scale
    q = grad_logps.to(state.factor.dtype) * state.factor * scale
    unit_q = q * FP16_SCALE if call.half_range else q  # U carries the 2^-12 of fp16 already
    empty = hidden.new_empty
    grad_hidden, grad_a = empty(0), empty(0)
    scaled_lora = None
    if state.unit_lora.numel():
        scaled_lora = dispatch.scale_rows(state.unit_lora, unit_q, empty(state.unit_lora.shape, dtype=products.compute))
    if options.need_hidden:
        grad_hidden = dispatch.scale_rows(state.unit_grad, unit_q, empty(hidden.shape, dtype=products.compute))
        if scaled_lora is not None:
            grad_hidden.addmm_(scaled_lora, lora_a.to(products.compute), alpha=options.lora_scale)
    if options.need_lora:
        grad_a = torch.mm(scaled_lora.t(), hidden).mul_(options.lora_scale).to(lora_a.dtype)
    shard = VocabShard.of(options.group, weight.shape[0])
    shard.sum_(grad_hidden)
    shard.sum_(grad_a)
    grad_weight, grad_bias, grad_b = empty(0), empty(0), empty(0)
    if call.stores_g:
        targets = shard.local_targets(targets)
        grad_weight, grad_bias, grad_b = _vocabulary_gradients(
            hidden, weight, bias, targets, lora_a, lora_b, state, q, call
        )
    return HeadGradients(grad_hidden, grad_weight, grad_bias, grad_a, grad_b)


def _vocabulary_gradients(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    targets: Tensor,
    lora_a: Tensor | None,
    lora_b: Tensor | None,
    state: HeadState,
    q: Tensor,
    call: HeadCall,
) -> tuple[Tensor, Tensor, Tensor]:
    plan, products, options = call.plan, call.products, call.options
    rows, vocab, first = hidden.shape[0], weight.shape[0], plan.kept_rows
    operand = products.operand
    empty = hidden.new_empty
    # q * h would be subnormal in fp16 (q holds 2^-12 and a loss coefficient near 1e-5): a power of two is taken out of
    # q on the device, and put back into the fp32 product.
    power = None
    if products.exact_half:
        power = torch.exp2(torch.floor(torch.log2(q.abs().amax().clamp(min=2.0**-126)))) if rows else q.new_ones(())
        q = q / power
    scaled = empty(hidden.shape, dtype=operand)
    if options.need_weight:
        dispatch.scale_rows(hidden, q, scaled)
    low_rank = None if lora_a is None else low_rank_rows(hidden, lora_a, options.lora_scale, products.compute)
    scaled_rank = None
    if options.need_lora:
        scaled_rank = dispatch.scale_rows(low_rank, q, empty(low_rank.shape, dtype=operand))
    grad_weight = empty(weight.shape if options.need_weight else 0, dtype=weight.dtype)
    grad_bias = empty(vocab if options.need_bias else 0, dtype=None if bias is None else bias.dtype)
    grad_b = empty(lora_b.shape if options.need_lora else 0, dtype=None if lora_b is None else lora_b.dtype)
    compute_weight = weight.to(products.compute) if first < rows else None
    compute_bias = None if bias is None else bias.to(products.accumulate)
    compute_b = None if lora_b is None else lora_b.to(products.compute)
    stored = first == rows and operand == state.kept.dtype  # G needs no buffer: it stands in `kept`
    spilled = rows - first
    buffer = None if stored else empty((rows, plan.tile_cols), dtype=operand)
    direct = products.logits == operand
    logits_buffer = None if direct or not spilled else empty((spilled, plan.tile_cols), dtype=products.logits)

    for columns in column_tiles(vocab, plan.tile_cols):
        width = columns.stop - columns.start
        if stored:
            g = state.kept[:, columns]
        else:
            g = buffer[:, :width]
            g[:first].copy_(state.kept[:, columns])
        if first < rows:
            spill = g[first:]
            logits = spill if direct else logits_buffer[:, :width]
            products.project(hidden[first:], compute_weight[columns], out=logits, cast_cols=width)
            block_rows = max(1, plan.block_rows * vocab // width)
            if low_rank is not None:
                add_low_rank(logits, low_rank[first:], compute_b[columns], block_rows)
            dispatch.tile_pass(
                logits,
                targets[first:] - columns.start,
                None if compute_bias is None else compute_bias[columns],
                call.transform,
                state=RowState(state.reference, state.mass, state.total),
                out=spill,
                half_range=call.half_range,
                block_rows=block_rows,
            )
        if options.need_weight:
            products.transposed_times(g, scaled, out=grad_weight[columns], scale=power)
        if options.need_bias:
            if power is None:
                grad_bias[columns] = torch.mv(g.t(), q.to(operand))
            else:
                grad_bias[columns] = torch.mv(g.t().to(torch.float32), q).mul_(power)
        if options.need_lora:
            products.transposed_times(g, scaled_rank, out=grad_b[columns], scale=power)
    return grad_weight, grad_bias, grad_b
