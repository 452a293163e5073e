"""The points of the last decoder layer's forward where something can be the largest.

`forward_points(shape, row, numbers, ...)` -> bytes by name, beyond what all layers keep at the end of the forward (with
checkpointing their inputs, else all that they save); a point before the end lacks some of it, and can be below zero.
Bytes per token, with the letters of `activations`; x the residual that waits:

| point | checkpointed | not |
|---|---|---|
| rotary | norm's result, 4 c Q + 2 c Kv | - |
| norm | its input, and two tensors of fp32 | - |
| head norms | norm's result, q, and two tensors of fp32 | - |
| product | x, norm's result, 3 c I | x, the norm's result if it is no saved input |
| up, LoRA | x, norm's result, 4 c I and under autocast 4 H | the same and c I, and under autocast 4 H |
| down, LoRA under autocast | x, norm's result, 2 c I + 4 I, c H | the same and c I + 4 I, 3 c H |
| output | x, c H, s H | x, c H, s H |

LoRA's up projection holds the base's product, the adapter's and its scaled one; under autocast peft makes an fp32 copy
of each adapter's input, which autocast rounds. Without checkpointing a bf16 stream is not what the norms save, so that
x stands for three tensors: the embedding, the layer's input, the residual.
"""

from __future__ import annotations

from amopo.memory.activations import Row, norm_running, norm_saved
from amopo.memory.precision import Numbers
from amopo.memory.shapes import ModelShape

_NORM = 2 * 4  # of a norm whose tensors nobody keeps, beside its input: two at a time, in fp32


def forward_points(
    shape: ModelShape, row: Row, numbers: Numbers, *, lora: int | None, checkpointing: bool
) -> dict[str, int]:
    c, s, h = numbers.compute, numbers.stream, shape.hidden
    style = shape.family.norm
    last_norm = shape.family.norms == 4  # of the MLP's result
    intermediate = c * shape.intermediate
    # what peft and autocast make of an adapter's input, beside what is saved of it
    fp32 = 4 if numbers.own_copies else 0
    points = {}
    if checkpointing:
        begin = s * h + s * h  # the residual, and the norm's result
        points["rotary"] = s * h + 4 * c * shape.query_width + 2 * c * shape.key_width
        if shape.family.qk_norm:
            points["head norms"] = s * h + (c + _NORM) * shape.query_width
        points["norm"] = (s + _NORM) * h
        at_product, at_up = 3 * intermediate, 4 * intermediate
        at_down = 2 * intermediate + c * h  # when the adapter reads its input
        waits, not_saved = s * h, 0
    else:
        waits = (3 if shape.layers > 1 else 2) * s * h if s == 2 else 0
        separate = numbers.own_copies or numbers.autocast  # the norm's result is rounded before it is saved
        begin = waits + (s * h if separate else 0)
        not_saved = norm_saved(h, s, style=style, trained=lora is None) if last_norm else 0
        at_product, at_up = 0, intermediate
        at_down = intermediate + 3 * c * h  # when the adapter's result is scaled
    if lora is None:
        points["product"] = begin + at_product - not_saved
    else:
        points["up"] = begin + at_up + fp32 * h - not_saved
        if fp32:
            points["down"] = begin + at_down + fp32 * shape.intermediate - not_saved
    points["output"] = waits + c * h + s * h
    if last_norm:
        running = (c + _NORM) * h if checkpointing else norm_running(h, c, style=style)
        points["last norm"] = waits + running - not_saved
    found = {name: row.tokens * size for name, size in points.items()}
    if numbers.autocast:  # the copy of down_proj's weight, or of its adapters', is made when it is read
        down = next(linear for linear in shape.linears if linear.name == "down_proj")
        made_last = c * (down.parameters if lora is None else lora * (down.inputs + down.outputs))
        if lora is not None and numbers.rounds_base and not checkpointing:
            made_last += c * down.parameters
        for name in ("rotary", "head norms", "norm", "product", "up"):
            if name in found:
                found[name] -= made_last
    return found
