"""Per-token log-probs of a linear head without stored logits, with a late gradient per row.

    logps[N] = log_softmax(softcap(scale * (hidden @ weight.T + bias)))[target]

Contract: `hidden [N, H]`, `weight [V, H]` (any row stride), `targets [N]` integers in [0, V), one dtype of fp32, fp64,
bf16, fp16 for hidden and weight (under autocast: its dtype). Returns fp32 `[N]` (fp64 for fp64), differentiable in
hidden, weight and bias with any upstream gradient per row, any number of backwards. No second derivatives.

How: the forward walks over row chunks, turns each chunk of logits into target-referenced exponentials G (`row_pass`),
multiplies `U = G W` at once and keeps G up to the byte budget. The upstream gradient c arrives late and only scales
rows: with `q = c * scale * factor`, `dH = -q * U` and `dW = -G^T (q * h)`, `db = -G^T q`. What was not kept is rebuilt
in the backward by vocabulary tiles, so that every entry of dW is rounded once and no `[V, H]` accumulator exists.

Cost: 6NVH FLOPs (4NVH with a frozen head or frozen body, 2NVH without gradients), up to 8NVH as the budget shrinks.
Kept between forward and backward: U `[N, H]`, G `[kept, V]`, three fp32 `[N]` vectors. See `workspace.workspace_bytes`.

Not supported, raises: `lora=` and `process_group=`, double backward, integer or quantised weights, DTensor weights.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from amopo_kernels.checks import check_finite, check_head_inputs, check_targets
from amopo_kernels.products import Products, choose_products, column_tiles
from amopo_kernels.row_pass import RowState, Transform, gradient_factor, row_pass, tile_pass
from amopo_kernels.workspace import Plan, plan_workspace


@dataclass(frozen=True)
class _Call:
    """Everything about one call that is not a tensor."""

    products: Products
    transform: Transform
    plan: Plan
    need_hidden_grad: bool
    need_weight_grad: bool
    need_bias_grad: bool

    @property
    def half_range(self) -> bool:
        return self.products.compute == torch.float16

    @property
    def stores_g(self) -> bool:
        return self.need_weight_grad or self.need_bias_grad


def linear_logprobs(
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    *,
    bias: Tensor | None = None,
    logit_scale: float | None = None,
    softcap: float | None = None,
    logits_dtype: torch.dtype | str | None = None,
    lora: tuple[Tensor, Tensor, float] | None = None,
    process_group: object | None = None,
    budget: int | None = None,
) -> Tensor:
    """Log-probability of each row's target token, `[N]`, without ever holding `[N, V]` logits.

    Args:
        hidden: `[N, H]`, any strides. weight: `[V, H]`, any row stride. targets: `[N]` int32 or int64 in `[0, V)`.
        bias: `[V]`. logit_scale: multiplies the logits. softcap: `cap * tanh(logits / cap)`, after the scale.
        logits_dtype: None (fp32 logits on CUDA and on CPUs without bf16 units, else the input dtype), `"input"`
            (faster, about 0.012 mean error per token in bf16), or `torch.float32`.
        budget: bytes for everything that grows with V (default: `max(4 * H * V, 1 GiB)`, 512 MiB with a frozen head).
    Returns:
        natural-log probabilities, fp32 (fp64 for fp64 inputs).
    Raises:
        ValueError, TypeError: shapes, dtypes, devices or budget that cannot be right. On a CPU also a target outside
        the vocabulary, NaN or inf in hidden or weight (RuntimeError); on CUDA bad targets trip a device assertion and
        NaN shows in the result, since looking at values would stop the stream.
    """
    if lora is not None:
        raise ValueError("linear_logprobs: lora= is not supported by this version; merge the adapter into the weight")
    if process_group is not None:
        raise ValueError("linear_logprobs: process_group= is not supported by this version; pass the full weight")
    check_head_inputs(hidden, weight, targets, bias, logit_scale, softcap)

    device_type = hidden.device.type
    compute = hidden.dtype
    if torch.is_autocast_enabled(device_type) and compute != torch.float64:
        compute = torch.get_autocast_dtype(device_type)
        hidden = hidden.to(compute)
    elif weight.dtype != hidden.dtype:
        raise TypeError(
            f"linear_logprobs: hidden is {hidden.dtype}, weight {weight.dtype}; cast one or call under torch.autocast"
        )
    grad = torch.is_grad_enabled()
    need_bias = bool(grad and bias is not None and bias.requires_grad)
    need_weight = bool(grad and weight.requires_grad)
    need_hidden = bool(grad and hidden.requires_grad)
    products = choose_products(compute, hidden.device, logits_dtype)
    plan = plan_workspace(
        (hidden.shape[0], hidden.shape[1], weight.shape[0]),
        products,
        budget=budget,
        need_hidden_grad=need_hidden,
        need_weight_grad=need_weight or need_bias,
        softcap=softcap is not None,
        cast_weight=weight.dtype != compute,
        device_type=device_type,
    )
    targets = targets.to(torch.int64)
    check_targets(targets, weight.shape[0])
    call = _Call(products, Transform(logit_scale, softcap), plan, need_hidden, need_weight, need_bias)
    with torch.autocast(device_type, enabled=False):
        logps = _LinearLogProbs.apply(hidden, weight, bias, targets, call)
    check_finite(logps, hidden)
    return logps


class _LinearLogProbs(torch.autograd.Function):
    """Autograd node over the chunk loop; saves the weight Parameter itself, never a copy of it."""

    @staticmethod
    def forward(ctx, hidden: Tensor, weight: Tensor, bias: Tensor | None, targets: Tensor, call: _Call) -> Tensor:
        rows, vocab = hidden.shape[0], weight.shape[0]
        plan, products = call.plan, call.products
        compute_weight = weight.to(products.compute)
        compute_bias = None if bias is None else bias.to(products.accumulate)
        logps = torch.empty(rows, dtype=products.accumulate, device=hidden.device)
        state = RowState.empty(rows, products.accumulate, hidden.device)
        unit_grad = hidden.new_empty(hidden.shape) if call.need_hidden_grad else None
        kept = hidden.new_empty((plan.kept_rows, vocab)) if call.stores_g else None

        for chunk, buffers in _row_chunks(rows, vocab, hidden, kept, call):
            logits, stored = buffers
            products.project(hidden[chunk], compute_weight, out=logits, cast_cols=plan.cast_cols)
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
            if unit_grad is not None:
                products.times_weight(stored, compute_weight, out=unit_grad[chunk], cast_cols=plan.cast_cols)
            if kept is not None and chunk.stop <= plan.kept_rows and stored.dtype != kept.dtype:
                kept[chunk].copy_(stored)

        if call.need_hidden_grad or call.stores_g:
            factor = gradient_factor(state, call.half_range)
            # The frozen head's backward needs U and the row factors alone: nothing of size V survives the forward.
            hidden_saved, weight_saved, bias_saved = (hidden, weight, bias) if call.stores_g else (None, None, None)
            spilled = kept is not None and plan.kept_rows < rows
            spill_state = state.slice(slice(plan.kept_rows, None)) if spilled else (None, None, None)
            ctx.save_for_backward(
                hidden_saved, weight_saved, bias_saved, targets, unit_grad, kept, factor, *spill_state
            )
        ctx.call = call
        return logps

    @staticmethod
    @once_differentiable
    def backward(ctx, grad_logps: Tensor):
        call: _Call = ctx.call
        hidden, weight, bias, targets, unit_grad, kept, factor, *spill_state = ctx.saved_tensors
        scale = 1.0 if call.transform.scale is None else call.transform.scale
        q = grad_logps.to(factor.dtype) * factor * -scale
        grad_hidden = grad_weight = grad_bias = None
        if call.need_hidden_grad:
            grad_hidden = torch.mul(unit_grad, q[:, None], out=torch.empty_like(unit_grad))
        if call.stores_g:
            grad_weight, grad_bias = _head_gradients(
                hidden, weight, bias, targets, kept, RowState(*spill_state), q, call
            )
        return grad_hidden, grad_weight, grad_bias, None, None


def _row_chunks(rows: int, vocab: int, hidden: Tensor, kept: Tensor | None, call: _Call):
    """Yield (row slice, (logits buffer, where G goes or None)) in order; kept rows first, then the spill."""
    plan, products = call.plan, call.products
    need_g = call.need_hidden_grad or call.stores_g
    in_place = products.logits == products.compute or products.policy == "upcast"
    kept_rows = plan.kept_rows
    if kept is not None and products.policy == "native" and kept_rows:
        yield slice(0, kept_rows), (kept, kept)
        first = kept_rows
    else:
        first = 0
    if first == rows:
        return
    size = plan.chunk_rows
    logits = torch.empty((min(size, rows - first), vocab), dtype=products.logits, device=hidden.device)
    spare = None
    edges = [*range(first, kept_rows, size), *range(max(first, kept_rows), rows, size), rows]
    for start, stop in zip(edges[:-1], edges[1:], strict=True):
        buffer = logits[: stop - start]
        if not need_g:
            stored = None
        elif in_place:
            stored = buffer
        elif stop <= kept_rows:
            stored = kept[start:stop]
        else:
            if spare is None:
                spare = torch.empty(logits.shape, dtype=products.compute, device=hidden.device)
            stored = spare[: stop - start]
        yield slice(start, stop), (buffer, stored)


def _head_gradients(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    targets: Tensor,
    kept: Tensor,
    state: RowState,
    q: Tensor,
    call: _Call,
) -> tuple[Tensor | None, Tensor | None]:
    """dW `[V, H]` and db `[V]` by vocabulary tiles; `q` carries the sign, `state` describes the spilled rows."""
    plan, products = call.plan, call.products
    rows, vocab, first = hidden.shape[0], weight.shape[0], plan.kept_rows
    operand = products.operand
    scaled = torch.mul(hidden, q[:, None], out=torch.empty(hidden.shape, dtype=operand, device=hidden.device))
    grad_weight = torch.empty(weight.shape, dtype=weight.dtype, device=weight.device) if call.need_weight_grad else None
    grad_bias = torch.empty(vocab, dtype=bias.dtype, device=bias.device) if call.need_bias_grad else None
    compute_weight = weight.to(products.compute) if first < rows else None
    compute_bias = None if bias is None else bias.to(products.accumulate)
    whole = first == rows and operand == kept.dtype
    buffer = None if whole else torch.empty(rows * plan.tile_cols, dtype=operand, device=hidden.device)

    for columns in column_tiles(vocab, plan.tile_cols):
        width = columns.stop - columns.start
        if whole:
            g = kept[:, columns]
        else:
            g = buffer[: rows * width].view(rows, width)
            g[:first].copy_(kept[:, columns])
        if first < rows:
            spill = g[first:]
            direct = products.logits == operand
            logits = spill if direct else torch.empty(spill.shape, dtype=products.logits, device=hidden.device)
            products.project(hidden[first:], compute_weight[columns], out=logits, cast_cols=width)
            tile_pass(
                logits,
                targets[first:] - columns.start,
                None if compute_bias is None else compute_bias[columns],
                call.transform,
                state=state,
                out=spill,
                half_range=call.half_range,
                block_rows=max(1, plan.block_rows * vocab // width),
            )
        if grad_weight is not None:
            products.transposed_times(g, scaled, out=grad_weight[columns])
        if grad_bias is not None:
            grad_bias[columns] = torch.mv(g.t(), q.to(operand))
    return grad_weight, grad_bias
