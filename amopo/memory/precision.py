"""Sizes of numbers in a run: what is stored, what is multiplied, what flows from layer to layer.

| precision | stored weights, gradients, Adam | products | residual stream |
|---|---|---|---|
| bf16 | 2 | 2 | 2 |
| fp32 | 4 | 4 | 4 |
| mixed; single, ddp (autocast) | 4 | 2, from copies of weights and inputs | 4 |
| mixed; fsdp2 (bf16 copies of fp32 shards) | 4 | 2 | 2 |
| mixed; zero3 (bf16 weights, fp32 master) | 2 + 4 | 2 | 2 |

With LoRA the base stays in bf16, as `amopo train --lora-r R --bf16` loads it, and the adapters are fp32 (peft's
default) unless the precision is bf16. A base in fp32 (`rounds_base`) autocast would round again in every product, and
the backward keep its copies.
"""

from __future__ import annotations

from dataclasses import dataclass

PRECISIONS = ("mixed", "bf16", "fp32")


@dataclass(frozen=True)
class Numbers:
    """Bytes per number. base: of frozen weights, under LoRA. own_copies: each linear layer saves its own input."""

    stored: int
    base: int
    gradient: int
    compute: int
    stream: int
    autocast: bool
    own_copies: bool

    @property
    def rounds_base(self) -> bool:
        """Whether autocast rounds frozen weights, each time that they are read."""
        return self.autocast and self.base > self.compute


def numbers_of(precision: str, engine: str, *, lora: bool) -> Numbers:
    """The sizes that a precision has under an engine."""
    if precision == "bf16":
        return Numbers(2, 2, 2, 2, 2, False, False)
    if precision == "fp32":
        return Numbers(4, 4, 4, 4, 4, False, False)
    if engine in ("single", "ddp"):
        if lora:  # a bf16 stream; the fp32 adapters read fp32 copies, which autocast rounds again, one per layer
            return Numbers(4, 2, 4, 2, 2, True, True)
        return Numbers(4, 4, 4, 2, 4, True, False)
    if engine == "fsdp2":
        return Numbers(4, 2 if lora else 4, 4, 2, 2, False, False)
    return Numbers(2, 2, 2, 2, 2, False, False)  # zero3; the fp32 master counts as optimizer state
