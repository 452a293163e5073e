"""Gathered weights and buffers of the engines, at the points of a step where something can be the largest.

`traffic(point, ...)` gives bytes beyond what `model_states` counts. U: a unit's gathered weights; A: the buffer of its
all-gather, which lives until the next unit has been copied out; G: its whole gradient; R: the buffer that a
reduce-scatter reads, which lives until the next unit's. l a decoder layer, t the head, e the embedding.

| point | ddp | fsdp2 | fsdp2, tied weights r |
|---|---|---|---|
| entering the first layer | - | A_e + max(U_e, U_l + A_l) | U_r + A_r + U_l + A_l |
| entering a later layer | - | A_l + U_l + A_l | U_r + A_l + U_l + A_l |
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
| embedding, reduced | - | R_e, and this rank's part | - |

The gradients that are being made at a point stand beside it: G_t of the head, those of a layer as far as its backward
has come, G_e of the embedding (`plan`).

DDP holds buckets of the size of all gradients from its construction to the end; gradients stand beside them
(`gradient_as_bucket_view=False`).

Order and lifetimes of fsdp2: torch/distributed/fsdp/_fully_shard. The last gradient of a unit, and so the only one of
head and embedding, stands until its reduction is over (a loop's variable in `foreach_reduce`); the all-gather buffer of
the unit before stands until this one's copies are made (a variable in `wait_for_unshard`).

zero3 (deepspeed/runtime/zero): the weights that `zero3.gathered` counts, and the bucket of the reduction, H^2 numbers,
which lives from the beginning to the end (`_setup_for_real_optimizer` in stage3.py). In the backward the gradients of
one bucket stand once more, in the order of the ranks (`reduce_scatter_coalesced` in comm/coalesced_collectives.py). In
the step the gradients of one sub-group of `sub_group_size` (1e9) numbers stand flat in bf16 and in fp32
(`_prepare_fp32_grad_for_sub_group`). Where the optimizer is offloaded, each gradient's partition is on the GPU once
more, in bf16 and fp32, on its way to the host (`partition_grads`); where parameters are, a partition on its way back.
"""

from __future__ import annotations

from dataclasses import dataclass

from amopo.memory import zero3
from amopo.memory.model_states import Parts, share
from amopo.memory.precision import Numbers
from amopo.memory.settings import RunSettings
from amopo.memory.shapes import ModelShape


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
            "layer begins": 3 * layer + table,
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
    reduced = c * share(parts.embedding, settings) if numbers.gradient != c else 0  # this rank's, before it is stored
    if settings.offload == "all":  # and stored, on its way to the host
        reduced += numbers.gradient * share(parts.embedding, settings)
    gathered = {
        "entering layers": table + max(table, 2 * layer),
        "layer forward": 2 * layer,
        "layer begins": 3 * layer,
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
        "embedding reduced": table_gradient + reduced,
    }
    return Traffic(gathered.get(point, 0), 0)


def sub_group_bytes(shape: ModelShape, parts: Parts, settings: RunSettings) -> int:
    """Fp32 gradients of one of ZeRO-3's sub-groups: whole partitions until `sub_group_size` numbers are reached."""
    most = zero3.SUB_GROUP + share(_largest_trained(shape, parts), settings)
    return 4 * min(most, share(parts.trained, settings))


def _largest_trained(shape: ModelShape, parts: Parts) -> int:
    return max(shape.embedding_parameters if parts.embedding else 0, parts.down)


def _zero3(point: str, shape: ModelShape, parts: Parts, settings: RunSettings) -> Traffic:
    bucket = zero3.ITEM * zero3.reduce_bucket(shape)
    largest = _largest_trained(shape, parts)
    if point in ("load", "step"):
        small = zero3.ITEM * zero3.persistent(shape, settings.lora)
        if settings.offload != "none":
            return Traffic(bucket + small, 0)
        flat = sub_group_bytes(shape, parts, settings) if point == "step" else 0
        return Traffic(bucket + small + flat * 3 // 2, 0)  # fp32, and bf16 from which it is made
    weights = zero3.gathered(
        shape, lora=settings.lora, checkpointing=settings.checkpointing, max_live=zero3.MAX_LIVE,
        max_reuse=zero3.MAX_REUSE,
    )  # fmt: skip
    in_layer = point.startswith("layer ") and point != "layer forward"
    reduced = in_layer or point in ("head reduced", "embedding")
    on_the_way = 0
    if reduced and settings.offload != "none":  # bf16 and fp32; on a CPU the former is where it was
        on_the_way = share(largest, settings) * (6 if settings.device == "cuda" else 4)
    if settings.offload == "all" and settings.device == "cuda":
        on_the_way = max(on_the_way, zero3.ITEM * share(shape.embedding_parameters, settings))
    buckets = 1 if not reduced else 2 if settings.device == "cuda" else 3  # gloo copies what it reduces
    waits = shape.tied and parts.embedding and in_layer
    return Traffic(
        weights[point] + bucket * buckets + on_the_way,
        zero3.ITEM * parts.embedding if waits else 0,  # for the embedding's own gradient
    )
