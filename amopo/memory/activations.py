"""What the layers of a decoder keep from forward to backward, and what they take while they run.

Derived operation by operation from what PyTorch's autograd saves (tools/autograd/derivatives.yaml) in the modelling
code of transformers; docs/memory.md has the table. Nothing is fitted. Notation, in numbers per token: H hidden, I
intermediate, Q = query heads * head size, Kv = key-value heads * head size; c bytes in products, s in the residual
stream; T tokens, S gathered keys.

    norm            4 H (its input in fp32) + its rounded result (Llama) or 4 H (Gemma), if its weight is trained
    linear layers   c H for each tensor that they read; under autocast one rounded copy per layer that reads fp32
    attention       see `attention`
    MLP             4 c I: gate, activation, up, product
"""

from __future__ import annotations

from dataclasses import dataclass

from amopo.memory import attention
from amopo.memory.precision import Numbers
from amopo.memory.shapes import ModelShape


@dataclass(frozen=True)
class Row:
    """A packed row: T tokens, R rows of the head, S keys of P paths; S = T where nothing is shared.

    mask: queries times keys, summed over the paths that are longer than their own part of the row.
    """

    tokens: int
    rows: int
    keys: int
    paths: int
    mask: int = 0


def norm_saved(width: int, item: int, *, style: str, trained: bool) -> int:
    """Bytes per token that an RMS norm of this width keeps; `item`: bytes per number of its input."""
    rounded = 4 if style == "gemma" else item
    return (4 + (rounded if trained else 0)) * width + 4


def norm_running(width: int, item: int, *, style: str) -> int:
    """Bytes per token at the end of a norm: input, fp32 copy, scaled fp32, rounded, result."""
    if item == 4:  # the input is its own fp32 copy
        return (4 + 4 + 4) * width
    if style == "gemma":  # scaled, then times the weight, both fp32
        return (item + 4 + 4 + 4 + item) * width
    return (item + 4 + 4 + item + item) * width


def layer_saved(shape: ModelShape, row: Row, numbers: Numbers, *, lora: int | None, device: str = "cuda") -> int:
    """Bytes that one layer keeps without checkpointing."""
    c, s, trained = numbers.compute, numbers.stream, lora is None
    style = shape.family.norm
    per_token = shape.family.norms * norm_saved(shape.hidden, s, style=style, trained=trained)
    if shape.family.qk_norm:
        width = shape.query_width + shape.key_width
        per_token += norm_saved(width, c, style=style, trained=trained)
    per_token += 4 * c * shape.intermediate
    inputs = {linear.name: linear.inputs for linear in shape.linears}
    if numbers.own_copies:
        # all read copies of their own; the product's copy stands for the product, which is counted above
        per_token += c * (sum(inputs.values()) - inputs["down_proj"])
    elif numbers.autocast:
        per_token += c * sum(inputs[name] for name in ("q_proj", "k_proj", "v_proj", "gate_proj", "up_proj"))
    else:
        per_token += c * 2 * shape.hidden
    if lora is not None:
        per_token += c * lora * len(shape.linears)
    sizes = {
        "tokens": row.tokens, "keys": row.keys, "heads": shape.heads, "kv_heads": shape.kv_heads,
        "head_dim": shape.head_dim, "itemsize": c,
    }  # fmt: skip
    kept = attention.saved(**sizes) if device == "cuda" else attention.saved_on_cpu(**sizes, mask=row.mask)
    return row.tokens * per_token + kept


def layer_copies(shape: ModelShape, numbers: Numbers, *, lora: int | None) -> int:
    """Bytes of the rounded weight copies that autocast makes for one layer, kept for its backward."""
    if not numbers.autocast:
        return 0
    return numbers.compute * (shape.linear_parameters if lora is None else shape.lora_parameters(lora))


def layer_backward_extra(shape: ModelShape, row: Row, numbers: Numbers) -> int:
    """The most that a layer's backward takes beyond what the layer has saved.

    In the backward of gate * up: the gradients of the product, of the activation and of up stand where the product
    was, with the gradient of the residual stream.
    """
    return row.tokens * (2 * numbers.compute * shape.intermediate + numbers.stream * shape.hidden)


def mlp_inputs_extra(shape: ModelShape, row: Row, numbers: Numbers) -> int:
    """The same in the backward of the up projection: product, activation and up have gone, their gradients stand.

    The gradients of activation and up, that of the residual stream, and that of the projection's input.
    """
    c, s = numbers.compute, numbers.stream
    return row.tokens * (-c * shape.intermediate + (s + c) * shape.hidden)


def attention_backward_extra(shape: ModelShape, row: Row, numbers: Numbers) -> int:
    """What attention's backward takes beyond the layer's saved tensors, less what the MLP has released by then.

    The gradients of its output, of q, k and v, and of the residual stream; without the kernel's own workspace.
    """
    c = numbers.compute
    gradients = row.tokens * 2 * c * shape.query_width + 2 * c * row.keys * shape.key_width
    released = row.tokens * 4 * c * shape.intermediate
    return gradients + row.tokens * numbers.stream * shape.hidden - released


def attention_work(shape: ModelShape, row: Row, numbers: Numbers) -> int:
    """What the kernel of attention's backward takes inside itself."""
    return attention.backward_workspace(
        tokens=row.tokens, keys=row.keys, heads=shape.heads, kv_heads=shape.kv_heads, head_dim=shape.head_dim,
        paths=row.paths, itemsize=numbers.compute,
    )  # fmt: skip


def layer_end(shape: ModelShape, row: Row, numbers: Numbers) -> int:
    """What stands at the end of a layer's backward, in that of its first norm.

    What the norm has saved, the gradients of the residual stream and of the norm's result, and in fp32 those of the
    scaled input, of the input, and of the input by way of its variance.
    """
    saved = norm_saved(shape.hidden, numbers.stream, style=shape.family.norm, trained=True)
    return row.tokens * (saved + (2 * numbers.stream + 3 * 4) * shape.hidden)


def layer_forward_running(shape: ModelShape, row: Row, numbers: Numbers) -> int:
    """The most that a checkpointed layer takes in the forward, beyond its input.

    In the MLP: the residual, the norm's result, activation, up and product.
    """
    c, s = numbers.compute, numbers.stream
    mlp = s * shape.hidden + s * shape.hidden + 3 * c * shape.intermediate
    return row.tokens * max(mlp, norm_running(shape.hidden, s, style=shape.family.norm))


def final_norm_saved(shape: ModelShape, row: Row, numbers: Numbers, *, trained: bool) -> int:
    return row.tokens * norm_saved(shape.hidden, numbers.stream, style=shape.family.norm, trained=trained)


def positions(shape: ModelShape, row: Row, numbers: Numbers) -> int:
    """cos and sin of the rotary embedding, kept for the whole step."""
    return 2 * row.tokens * shape.head_dim * numbers.stream
