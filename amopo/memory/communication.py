"""Gathered weights and buffers of the engines, at the points of a step where something can be the largest.

`traffic(point, ...)` gives bytes beyond what `model_states` counts. U: a unit's gathered weights; A: the buffer of its
all-gather, which lives until the next unit has been copied out; G: its whole gradient; R: the buffer that a
reduce-scatter reads, which lives until the next unit's. l a decoder layer, t the head, e the embedding.

| point | ddp | fsdp2 | fsdp2, tied weights r |
|---|---|---|---|
| entering the first layer | - | A_e + max(U_e, U_l + A_l) | U_r + A_r + U_l + A_l |
| layer, forward | - | U_l + A_l | U_r + U_l + A_l |
| entering the head | - | A_l + U_t + A_t | U_r + A_l |
| head, forward | - | U_t + A_t | U_r + A_l |
| head, backward | - | U_t + A_l | U_r + A_l |
| head, reduced | - | A_l + R_t, and this rank's part | - |
| final norm, backward | - | A_l + R_t | U_r + G_r + A_l |
| last layer, backward | - | U_l + A_l + R_t | U_r + G_r + U_l + A_l |
| a layer between, backward | - | U_l + A_l + R_l | U_r + G_r + U_l + A_l + R_l |
| first layer, backward | - | U_l + A_e + R_l | U_r + G_r + U_l + R_l |
| embedding, backward | - | max(U_e + R_l, R_e) | U_r + R_l |

The gradients that are being made at a point stand beside it: G_t of the head, those of a layer as far as its backward
has come, G_e of the embedding (`plan`).

DDP holds buckets of the size of all gradients from its construction to the end; gradients stand beside them
(`gradient_as_bucket_view=False`).

Order and lifetimes of fsdp2: torch/distributed/fsdp/_fully_shard.

zero3, with the values that transformers puts for "auto" (H^2 numbers in a reduce bucket): while layers run, at most
`stage3_max_live_parameters` (1e9) gathered numbers, or the model; one reduce bucket; the whole gradient of the module
at hand, in bf16; in the step the fp32 gradients of one `sub_group_size` (1e9).
"""

from __future__ import annotations

from dataclasses import dataclass

from amopo.memory.model_states import Parts, share
from amopo.memory.precision import Numbers
from amopo.memory.settings import RunSettings
from amopo.memory.shapes import ModelShape

MAX_LIVE, SUB_GROUP = 10**9, 10**9  # DeepSpeed's defaults, in numbers


@dataclass(frozen=True)
class Traffic:
    """buffers: gathered weights and communication. gradients: of a tied weight that is not yet reduced."""

    buffers: int
    gradients: int


def traffic(point: str, shape: ModelShape, parts: Parts, numbers: Numbers, settings: RunSettings) -> Traffic:
    if settings.engine == "single":
        return Traffic(0, 0)
    if settings.engine == "ddp":
        return Traffic(parts.trained * numbers.gradient, 0)
    if settings.engine == "zero3":
        return _zero3(point, shape, parts, settings)
    if point.startswith(("last layer", "upper layer", "lower layer", "first layer")):  # the same at all of its points
        point = " ".join(point.split()[:2])
    c = numbers.compute
    layer = c * (shape.layer_parameters + (parts.layer if parts.frozen else 0))
    layer_gradient = c * parts.layer
    table = c * shape.embedding_parameters  # the embedding, and the head where it has its own
    table_gradient = c * parts.embedding
    several = shape.layers > 1
    if shape.tied:
        gathered = {
            "entering layers": 2 * layer + 2 * table,
            "layer forward": 2 * layer + table,
            "entering head": layer + table,
            "head forward": layer + table,
            "head backward": layer + table,
            "final norm": layer + table,
            "last layer": table + layer * (2 if several else 1),
            "upper layer": table + 2 * layer + layer_gradient,
            "lower layer": table + 2 * layer + layer_gradient,
            "first layer": table + layer + (layer_gradient if several else 0),
            "embedding": table + layer_gradient,
        }
        waits = table_gradient if point.endswith("layer") or point == "final norm" else 0  # reduced at the end
        return Traffic(gathered.get(point, 0), waits)
    head_gradient = c * parts.head
    reduced = c * share(parts.head, settings) if numbers.gradient != c else 0  # this rank's, before it is stored
    gathered = {
        "entering layers": table + max(table, 2 * layer),
        "layer forward": 2 * layer,
        "entering head": layer + 2 * table,
        "head forward": 2 * table,
        "head backward": table + layer,
        "head reduced": layer + head_gradient + reduced,
        "final norm": layer + head_gradient,
        "last layer": layer + (layer if several else table) + head_gradient,
        "upper layer": 2 * layer + layer_gradient,
        "lower layer": 2 * layer + layer_gradient,
        "first layer": layer + table + (layer_gradient if several else head_gradient),
        "embedding": max(table + layer_gradient, table_gradient),
    }
    return Traffic(gathered.get(point, 0), 0)


def _zero3(point: str, shape: ModelShape, parts: Parts, settings: RunSettings) -> Traffic:
    bucket = 2 * shape.hidden**2
    if point == "step":
        fp32 = 0 if settings.offload != "none" else 4 * min(SUB_GROUP, share(parts.trained, settings))
        return Traffic(bucket + fp32, 0)
    largest = max(shape.layer_parameters, shape.embedding_parameters)
    gathered = 2 * min(shape.parameters, max(MAX_LIVE, largest))
    return Traffic(gathered + bucket, 0)
