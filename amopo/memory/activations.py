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

    mask: numbers in the mask that a layer's attention keeps where SDPA runs on a CPU (`amopo.packing.sdpa.kept_mask`).
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
    kept = attention.saved(**sizes, mask=row.mask, softcap=shape.attention_softcap, device=device)
    return row.tokens * per_token + kept


def layer_copies(shape: ModelShape, numbers: Numbers, *, lora: int | None) -> int:
    """Bytes of the rounded weight copies that autocast makes for one layer, kept for its backward."""
    base = numbers.compute * shape.linear_parameters if numbers.rounds_base and lora is not None else 0
    return cached_copies(shape, numbers, lora=lora) + base


def cached_copies(shape: ModelShape, numbers: Numbers, *, lora: int | None) -> int:
    """Those of them that autocast caches for its context: of trained weights (aten/src/ATen/autocast_mode.cpp)."""
    if not numbers.autocast:
        return 0
    return numbers.compute * (shape.linear_parameters if lora is None else shape.lora_parameters(lora))


def norm_of_stream(shape: ModelShape, row: Row, numbers: Numbers, *, trained: bool) -> int:
    """What a norm of the residual stream keeps: the final one, or a layer's first."""
    return row.tokens * norm_saved(shape.hidden, numbers.stream, style=shape.family.norm, trained=trained)


def final_norm_backward(shape: ModelShape, row: Row, numbers: Numbers) -> int:
    """In the backward of the final norm: its input in fp32, and five tensors (`layer_backward`)."""
    return row.tokens * (4 + 5 * 4) * shape.hidden


def positions(shape: ModelShape, row: Row, numbers: Numbers) -> int:
    """cos and sin of the rotary embedding, kept for the whole step."""
    return 2 * row.tokens * shape.head_dim * numbers.stream
