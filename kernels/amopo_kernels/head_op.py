"""The head as two custom operators, so that torch.compile and FakeTensorMode see one node each way.

`amopo::linear_logprobs` and `amopo::linear_logprobs_backward` wrap `head_forward` and `head_backward`. Operators return
tensors only: what is not needed is a tensor without elements. The first output carries gradients, the others are kept
for the backward. Saved inputs are the tensors given (a Parameter stays itself), never copies.
"""

from __future__ import annotations

import dataclasses

import torch

from amopo_kernels.head_backward import head_backward
from amopo_kernels.head_call import HeadCall, HeadOptions
from amopo_kernels.head_forward import HeadState, head_forward
from amopo_kernels.workspace import row_stride

_INPUTS = "Tensor hidden, Tensor weight, Tensor? bias, Tensor targets, Tensor? lora_a, Tensor? lora_b"
_STATE = ", ".join(f"Tensor {name}" for name in HeadState._fields if name != "logps")
_TYPES = {"torch.dtype": "ScalarType", "float | None": "float?", "int | None": "SymInt?"}
_OPTIONS = ", ".join(f"{_TYPES.get(field.type, field.type)} {field.name}" for field in dataclasses.fields(HeadOptions))
_NUM_INPUTS, _NUM_STATE = 6, len(HeadState._fields) - 1


def _rank(lora_b: torch.Tensor | None) -> int:
    return 0 if lora_b is None else lora_b.shape[1]


def _returns(count: int) -> str:
    return f"({', '.join(['Tensor'] * count)})"


@torch.library.custom_op(
    "amopo::linear_logprobs", mutates_args=(), schema=f"({_INPUTS}, {_OPTIONS}) -> {_returns(_NUM_STATE + 1)}"
)
def linear_logprobs_op(*arguments):
    inputs, options = arguments[:_NUM_INPUTS], HeadOptions(*arguments[_NUM_INPUTS:])
    return tuple(head_forward(*inputs, HeadCall.make(inputs[0], inputs[1], options, _rank(inputs[5]))))


@linear_logprobs_op.register_fake
def _(*arguments):
    (hidden, weight, _, _, _, lora_b), options = arguments[:_NUM_INPUTS], HeadOptions(*arguments[_NUM_INPUTS:])
    rank = _rank(lora_b)
    call = HeadCall.make(hidden, weight, options, rank)
    rows, size = hidden.shape
    accumulate, compute = call.products.accumulate, call.products.compute
    kept = call.plan.kept_rows if call.stores_g else 0
    spill = rows - kept if call.stores_g else 0
    shapes = {
        "logps": ((rows,), accumulate),
        "unit_grad": ((rows, size) if options.need_hidden else (0, 0), compute),
        "unit_lora": ((rows if rank and call.needs_g else 0, rank), compute),
        "kept": ((kept, row_stride(weight.shape[0])), compute),
        "factor": ((rows if call.needs_g else 0,), accumulate),
        **{name: ((spill,), accumulate) for name in ("reference", "mass", "total")},
    }
    state = HeadState(*(hidden.new_empty(shape, dtype=dtype) for shape, dtype in map(shapes.get, HeadState._fields)))
    return tuple(state._replace(kept=state.kept[:, : weight.shape[0]]))


@torch.library.custom_op(
    "amopo::linear_logprobs_backward",
    mutates_args=(),
    schema=f"(Tensor grad_logps, {_INPUTS}, {_STATE}, {_OPTIONS}) -> {_returns(5)}",
)
def linear_logprobs_backward_op(grad_logps, *arguments):
    inputs, rest = arguments[:_NUM_INPUTS], arguments[_NUM_INPUTS:]
    state, options = HeadState(grad_logps, *rest[:_NUM_STATE]), HeadOptions(*rest[_NUM_STATE:])
    call = HeadCall.make(inputs[0], inputs[1], options, _rank(inputs[5]))
    return tuple(head_backward(grad_logps, *inputs, state, call))


@linear_logprobs_backward_op.register_fake
def _(grad_logps, *arguments):
    hidden, weight, bias, _, lora_a, lora_b = arguments[:_NUM_INPUTS]
    options = HeadOptions(*arguments[_NUM_INPUTS + _NUM_STATE :])
    wanted = [
        (hidden if options.need_hidden else None, options.compute_dtype),
        (weight if options.need_weight else None, weight.dtype),
        (bias if options.need_bias else None, None if bias is None else bias.dtype),
        (lora_a if options.need_lora else None, None if lora_a is None else lora_a.dtype),
        (lora_b if options.need_lora else None, None if lora_b is None else lora_b.dtype),
    ]
    return tuple(hidden.new_empty(0 if like is None else like.shape, dtype=dtype) for like, dtype in wanted)


def _setup_context(ctx, inputs, output) -> None:
    # Without this autograd would make zeros [kept, V] as the gradient of an output that has none.
    ctx.set_materialize_grads(False)
    ctx.mark_non_differentiable(*output[1:])
    ctx.options = HeadOptions(*inputs[_NUM_INPUTS:])
    saved = list(inputs[:_NUM_INPUTS])
    if not (ctx.options.need_weight or ctx.options.need_bias or ctx.options.need_lora):
        # A frozen head's backward reads U and the row factors alone: nothing of vocabulary size is kept.
        saved[0], saved[1], saved[2] = output[1], None, None
    ctx.save_for_backward(*saved, *output[1:])


def _backward(ctx, grad_logps, *_):
    count = len(dataclasses.fields(HeadOptions))
    if grad_logps is None:
        return (None,) * (_NUM_INPUTS + count)
    options = [getattr(ctx.options, field.name) for field in dataclasses.fields(HeadOptions)]
    hidden, weight, *others = ctx.saved_tensors
    weight = hidden.new_empty((1, hidden.shape[1])) if weight is None else weight
    grads = linear_logprobs_backward_op(grad_logps, hidden, weight, *others, *options)
    needs = (ctx.options.need_hidden, ctx.options.need_weight, ctx.options.need_bias)
    needs += (ctx.options.need_lora, ctx.options.need_lora)
    hidden, weight, bias, lora_a, lora_b = (grad if need else None for grad, need in zip(grads, needs, strict=True))
    return (hidden, weight, bias, None, lora_a, lora_b, *(None,) * count)


linear_logprobs_op.register_autograd(_backward, setup_context=_setup_context)
