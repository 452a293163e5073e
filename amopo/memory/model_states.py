"""Parameters, gradients and optimizer state of one rank.

| engine | parameters | gradients | AdamW |
|---|---|---|---|
| single, ddp | stored * P | stored * trained | 2 * stored * trained |
| fsdp2 | stored * P / N | stored * trained / N | 2 * stored * trained / N |
| zero3 | 2 P / N | 2 * trained / N, from the beginning | (4 + 8) trained / N: fp32 master and two moments |

with P parameters, N ranks, and the sizes of `precision`. adamw8bit keeps both moments in one byte each and a fp32 scale
per block of 256 numbers (bitsandbytes, blockwise), and those of embeddings in fp32, as transformers' trainer asks of
it. Sources: torch.optim.AdamW, torch.distributed.fsdp.fully_shard, deepspeed/runtime/zero/stage3.py
(`_create_fp16_partitions_with_defragmentation`, `_create_fp32_partitions`, `_setup_for_real_optimizer`).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from amopo.memory.precision import Numbers
from amopo.memory.settings import RunSettings
from amopo.memory.shapes import ModelShape

BLOCK = 256  # numbers per scale of adamw8bit


@dataclass(frozen=True)
class Parts:
    """Parameters that are trained, by where they stand; `frozen` of the whole model."""

    layer: int
    down: int  # of the layer's down projection, whose gradient comes first
    embedding: int
    head: int
    norm: int
    layers: int
    frozen: int

    @property
    def trained(self) -> int:
        return self.layers * self.layer + self.embedding + self.head + self.norm


def trained_parts(shape: ModelShape, lora: int | None) -> Parts:
    """What is trained: everything, or adapters of rank `lora` on the linear layers of the decoder layers."""
    down = next(linear for linear in shape.linears if linear.name == "down_proj")
    if lora is None:
        return Parts(
            layer=shape.layer_parameters, down=down.parameters, embedding=shape.embedding_parameters,
            head=shape.head_parameters, norm=shape.hidden, layers=shape.layers, frozen=0,
        )  # fmt: skip
    return Parts(
        layer=shape.lora_parameters(lora), down=lora * (down.inputs + down.outputs), embedding=0, head=0, norm=0,
        layers=shape.layers, frozen=shape.parameters,
    )  # fmt: skip


def share(count: int, settings: RunSettings) -> int:
    """Numbers of `count` that one rank holds under a sharding engine."""
    return math.ceil(count / settings.gpus) if settings.engine in ("fsdp2", "zero3") else count


def parameter_bytes(parts: Parts, numbers: Numbers, settings: RunSettings) -> int:
    return share(parts.trained, settings) * numbers.stored + share(parts.frozen, settings) * numbers.base


def gradient_bytes(count: int, numbers: Numbers, settings: RunSettings) -> int:
    """Of `count` trained parameters, as they are kept for the optimizer."""
    return share(count, settings) * numbers.gradient


def optimizer_bytes(parts: Parts, numbers: Numbers, settings: RunSettings) -> int:
    """Optimizer state, with the fp32 master of zero3."""
    master = master_bytes(parts, settings)
    item = 4 if settings.engine == "zero3" else numbers.stored
    if settings.optimizer == "adamw":
        return share(parts.trained, settings) * 2 * item + master
    small = share(parts.trained - parts.embedding, settings)
    return 2 * small + 2 * 4 * math.ceil(small / BLOCK) + share(parts.embedding, settings) * 2 * 4 + master


def master_bytes(parts: Parts, settings: RunSettings) -> int:
    """The fp32 copy of the weights that zero3 updates."""
    return 4 * share(parts.trained, settings) if settings.engine == "zero3" else 0


def host_bytes(parts: Parts, numbers: Numbers, settings: RunSettings) -> int:
    """What offloading puts into this rank's host memory: optimizer state and gradients, with "all" the weights too.

    zero3 has the gradients there in bf16, where they are added up, and in fp32, from which the optimizer steps; fsdp2
    has them once, as it stores parameters.
    """
    if settings.offload == "none":
        return 0
    gradient = numbers.gradient + (4 if settings.engine == "zero3" else 0)
    held = optimizer_bytes(parts, numbers, settings) + gradient * share(parts.trained, settings)
    return held + (parameter_bytes(parts, numbers, settings) if settings.offload == "all" else 0)
