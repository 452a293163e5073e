"""The points of a decoder layer's backward where something can be the largest.

`backward_points(shape, row, numbers, ...)` -> `LayerPoint`s. Bytes are those of the layer
itself: what it still has of its saved tensors and of its weight copies, the gradients of activations that stand, and G,
the gradient of the residual stream. Bytes per token, with the letters of `activations`:

| point | saved tensors that are left | beside them | gradients of weights |
|---|---|---|---|
| recompute | all | LoRA under autocast: c I + 4 I, G, 3 s H, c H | - |
| last norm, Gemma | all | 20 H, G | - |
| down | all | c I, G | down |
| product | all but the product | 3 c I (of the product, of the activation, of up), G | down |
| up | gate, and what stands before the MLP | 2 c I, c H, G | down, up |
| gate | what stands before the MLP | c I, 2 c H, G | down, up, gate |
| mlp norm | its fp32 input, and what stands before it | 20 H, G | the MLP's |
| attention | first norm, inputs of q, k, v, attention's own | 2 c Q + 2 c Kv S / T, G, the kernel's | all but q, k, v |
| head norms | first norm, inputs of q, k, v, their fp32 inputs | 20 Q, 2 c Kv, G | all but q, k, v |
| end | the first norm's fp32 input | 20 H, G | all |

20: in the backward of a norm five tensors stand in fp32, the gradient of the scaled input, and in that of
`pow(2).mean()` the gradient, the power, its double and their product. A norm whose input is in fp32 has not copied it:
the first norm's is then the layer's input, which a checkpointed layer holds anyway. Under autocast the backward of a
linear layer releases its weight's copy.
"""

from __future__ import annotations

from dataclasses import dataclass

from amopo.memory import attention
from amopo.memory.activations import Row, norm_saved
from amopo.memory.precision import Numbers
from amopo.memory.shapes import ModelShape

NORM = 5 * 4  # bytes per number in the backward of a norm


@dataclass(frozen=True)
class LayerPoint:
    """place: mlp, attention or end, for what engines have gathered there. made: numbers of whole weight gradients.

    latest: those of them that were made last, and stand alone until they are added to a gradient that is there already.
    """

    name: str
    place: str
    bytes: int
    made: int = 0
    work: int = 0
    latest: int = 0


def backward_points(
    shape: ModelShape, row: Row, numbers: Numbers, *, lora: int | None, checkpointing: bool, device: str
) -> list[LayerPoint]:
    """`bytes` are without the input that a checkpointed layer keeps."""
    c, s, h, t = numbers.compute, numbers.stream, shape.hidden, row.tokens
    style, trained = shape.family.norm, lora is None
    linears = {linear.name: linear for linear in shape.linears}

    def weights(*names: str) -> int:
        """Numbers of the gradients of these layers: of their weights, or of their adapters."""
        if lora is None:
            return sum(linears[name].parameters for name in names)
        return sum(lora * (linears[name].inputs + linears[name].outputs) for name in names)

    def copies(*names: str) -> int:
        base = sum(linears[name].parameters for name in names) if lora is not None and numbers.rounds_base else 0
        return c * (weights(*names) + base) if numbers.autocast else 0

    # saved tensors, bytes per token
    norm = norm_saved(h, s, style=style, trained=trained)
    shared = s * h if checkpointing and s == 4 else 0  # the first norm's input is the layer's
    after_mlp = norm if shape.family.norms == 4 else 0
    between = norm if shape.family.norms == 4 else 0  # after attention
    intermediate = c * shape.intermediate
    several = numbers.own_copies or numbers.autocast
    mlp_input = (2 if several else 1) * c * h
    qkv_input = (3 if several else 1) * c * h
    o_input = c * shape.query_width if numbers.own_copies else 0
    width = shape.query_width + shape.key_width
    head_norms = norm_saved(width, c, style=style, trained=trained) if shape.family.qk_norm else 0
    adapters = 0 if lora is None else c * lora
    sizes = {
        "tokens": t, "keys": row.keys, "heads": shape.heads, "kv_heads": shape.kv_heads,
        "head_dim": shape.head_dim, "itemsize": c,
    }  # fmt: skip
    of_attention = attention.saved(**sizes, mask=row.mask, softcap=shape.attention_softcap, device=device)
    work = attention.backward_workspace(**sizes, paths=row.paths) if device == "cuda" else 0

    stream = s * h  # G
    begin = norm - shared + qkv_input + 3 * adapters
    until_mlp = begin + head_norms + o_input + adapters + between
    mlp = mlp_input + 3 * adapters + after_mlp + 4 * intermediate
    all_saved = t * (until_mlp + norm + mlp) + of_attention

    qkv, of_mlp = ("q_proj", "k_proj", "v_proj"), ("gate_proj", "up_proj", "down_proj")
    everything = (*qkv, "o_proj", *of_mlp)
    norms = 0 if lora is not None else shape.layer_parameters - shape.linear_parameters
    before_mlp = t * (until_mlp + norm + mlp_input + 2 * adapters) + of_attention
    gradients_of_qkv = t * 2 * c * shape.query_width + 2 * c * row.keys * shape.key_width
    points = [
        LayerPoint(  # the largest only where the gradient that it makes is added to another
            "down", "mlp", all_saved + t * (intermediate - after_mlp - adapters + stream) + copies(*everything),
            weights("down_proj"), latest=weights("down_proj"),
        ),
        LayerPoint(
            "product", "mlp", all_saved + t * (2 * intermediate - after_mlp - adapters + stream)
            + copies(*qkv, "o_proj", "gate_proj", "up_proj"), weights("down_proj"),
        ),
        LayerPoint(
            "up", "mlp", before_mlp + t * (3 * intermediate + c * h + stream)
            + copies(*qkv, "o_proj", "gate_proj", "up_proj"), weights("down_proj", "up_proj"),
            latest=weights("up_proj"),
        ),
        LayerPoint(
            "gate", "mlp", before_mlp + t * (intermediate + 2 * c * h + stream)
            + copies(*qkv, "o_proj", "gate_proj"), weights(*of_mlp), latest=weights("gate_proj"),
        ),
        LayerPoint(
            "mlp norm", "mlp", t * (until_mlp + 4 * h + NORM * h + stream) + of_attention + copies(*qkv, "o_proj"),
            weights(*of_mlp),
        ),
        LayerPoint(
            "attention", "attention", t * (begin + head_norms + stream) + of_attention + gradients_of_qkv
            + copies(*qkv), weights("o_proj", *of_mlp), work,
        ),
        LayerPoint("end", "end", t * (4 * h - shared + NORM * h + stream), weights(*everything) + norms),
    ]  # fmt: skip
    if after_mlp:  # its own saved input stays
        at_norm = all_saved - t * (after_mlp - 4 * h) + t * (NORM * h + stream)
        points.insert(0, LayerPoint("last norm", "mlp", at_norm + copies(*everything)))
    if shape.family.qk_norm:
        at_norms = begin + 4 * width + NORM * shape.query_width + 2 * c * shape.key_width + stream
        points.append(LayerPoint("head norms", "attention", t * at_norms + copies(*qkv), weights("o_proj", *of_mlp)))
    if checkpointing and numbers.own_copies:
        # The adapters of down_proj read an fp32 copy of the product, which their autocast rounds; the gradients of the
        # layer's output and of its scaled half wait, with the residual, the norm's result and the base's own product.
        again = intermediate + 4 * shape.intermediate + stream + 3 * s * h + c * h
        points.insert(0, LayerPoint("recompute", "mlp", all_saved + t * again + copies(*everything)))
    return points
