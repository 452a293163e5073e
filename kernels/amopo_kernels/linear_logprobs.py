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

Two more forms: `lora=(A, B, scale)` adds a low-rank adapter on the head, `process_group=` shards the vocabulary over
ranks. Not supported, raises: double backward, integer or quantised weights, DTensor weights.
"""

from __future__ import annotations

import dataclasses

import torch
from torch import Tensor

from amopo_kernels.checks import (
    check_budget,
    check_finite,
    check_head_inputs,
    check_lora,
    check_targets,
    logits_dtype_name,
)
from amopo_kernels.head_call import HeadOptions
from amopo_kernels.head_op import linear_logprobs_op
from amopo_kernels.vocab_parallel import check_equal_rows


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
        lora: (A `[r, H]`, B `[V, r]`, scale): the product becomes `hidden @ (weight + scale * B @ A).T`, without the
            merged weight; A and B may need gradients. Their dropout, DoRA and several adapters are the caller's to
            refuse.
        process_group: a `torch.distributed` group whose ranks hold `weight [V / P, H]`, `bias [V / P]` (and B) in
            rank order, all of one size (the ranks compare them; one host sync per size); hidden and targets
            are the same on all ranks, targets over the whole `[0, V)`.
        budget: bytes for everything that grows with V (default: `max(4 * H * V, 1 GiB)`, 512 MiB with a frozen head).
    Returns:
        natural-log probabilities, fp32 (fp64 for fp64 inputs).
    Raises:
        ValueError, TypeError: shapes, dtypes, devices or budget that cannot be right, shards of unequal size. On a
            CPU also a target outside the vocabulary, NaN or inf in hidden or weight (RuntimeError); on CUDA bad targets
            trip a device assertion and NaN shows in the result, since looking at values would stop the stream.
    """
    check_head_inputs(hidden, weight, targets, bias, logit_scale, softcap)
    lora_a, lora_b, lora_scale = check_lora(lora, hidden, weight)
    group = "" if process_group is None else process_group.group_name
    if process_group is not None:
        check_equal_rows(weight, process_group)  # before anything that one rank alone would raise

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
    options = HeadOptions(
        compute_dtype=compute,
        logit_scale=None if logit_scale is None else float(logit_scale),
        softcap=None if softcap is None else float(softcap),
        lora_scale=lora_scale,
        logits_dtype=logits_dtype_name(logits_dtype, compute),
        budget=check_budget(budget),
        group=group,
        need_hidden=grad and hidden.requires_grad,
        need_weight=grad and weight.requires_grad,
        need_bias=grad and bias is not None and bias.requires_grad,
        need_lora=grad and lora_a is not None and (lora_a.requires_grad or lora_b.requires_grad),
    )
    # The kernels read vectors without strides: ids[:, 1] is copied here, once.
    targets = targets.to(torch.int64).contiguous()
    bias = None if bias is None else bias.contiguous()
    check_targets(targets, weight.shape[0] * (1 if process_group is None else process_group.size()))
    values = [getattr(options, field.name) for field in dataclasses.fields(options)]
    with torch.autocast(device_type, enabled=False):
        logps = linear_logprobs_op(hidden, weight, bias, targets, lora_a, lora_b, *values)[0]
    check_finite(logps, hidden)
    return logps
