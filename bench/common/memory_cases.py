"""Whole models whose memory is measured: shape, what is trained, and how large a card they run on.

`MemoryCase.settings(card)` chooses the first of the case's settings whose plan of the largest row fits: with all of its
activations kept, full fine-tuning of 7B does not fit one GPU at every size (in mixed precision weights, gradients and
AdamW alone are 16 bytes a parameter).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from amopo.memory.known_shapes import BUILT_IN
from amopo.memory.methods import plan_method
from amopo.memory.settings import RunSettings, SampleShape
from amopo.memory.shapes import ModelShape
from amopo.memory.workload import fill

GIB = 1 << 30


@dataclass(frozen=True)
class MemoryCase:
    """tokens: budgets of `amopo pair`, filled with samples that all methods run. card: bytes, where the device has no
    limit of its own (a CPU): a step that takes more counts as out of memory."""

    name: str
    shape: ModelShape
    choices: tuple[RunSettings, ...]
    sample: SampleShape
    tokens: tuple[int, ...]
    search: bool = False  # for the largest budget of each method
    card: int | None = None

    def __str__(self) -> str:
        return self.name

    def card_bytes(self, device: torch.device) -> int:
        """What tensors may take: a GPU less what CUDA has taken of it already."""
        if device.type != "cuda":
            return self.card
        free, _ = torch.cuda.mem_get_info(device)
        return free + torch.cuda.memory_reserved(device)

    def settings(self, card: int) -> RunSettings:
        """The first choice with which `amopo pair` fits the largest row; the last one where none does."""
        sample = fill(self.sample, self.tokens[-1])
        for choice in self.choices:
            if plan_method("amopo pair", self.shape, sample, choice).peak <= card:
                return choice
        return self.choices[-1]


def describe(settings: RunSettings) -> str:
    """The settings in a few words."""
    trained = "all weights" if settings.lora is None else f"LoRA rank {settings.lora}"
    return f"{trained}, {settings.precision}, {'checkpointing' if settings.checkpointing else 'all activations kept'}"


def _full(precision: str) -> tuple[RunSettings, ...]:
    return tuple(RunSettings(precision=precision, checkpointing=checkpointing) for checkpointing in (False, True))


_TINY = ModelShape("tiny", "qwen2", 3, 128, 384, 4, 2, 32, 4096, False)
_SHORT = SampleShape(prompt=20, template=4, chosen=20, rejected=16)
_TOKENS = (4096, 8192, 16384, 32768)
_CPU = {"precision": "fp32", "device": "cpu"}
_LORA = (RunSettings(lora=16, checkpointing=True),)
MEMORY_CASES: dict[str, Sequence[MemoryCase]] = {
    "small": (
        MemoryCase("tiny-full", _TINY, (RunSettings(**_CPU),), _SHORT, (256, 1024), card=96 << 20),
        MemoryCase(
            "tiny-lora", _TINY, (RunSettings(lora=4, checkpointing=True, **_CPU),), _SHORT, (256, 1024), search=True,
            card=30 << 20,
        ),
    ),
    "cuda": (
        MemoryCase("qwen2.5-7b-full-bf16", BUILT_IN["Qwen2.5-7B"], _full("bf16"), SampleShape(), _TOKENS),
        MemoryCase("qwen2.5-7b-full-mixed", BUILT_IN["Qwen2.5-7B"], _full("mixed"), SampleShape(), _TOKENS),
        MemoryCase("qwen2.5-14b-lora", BUILT_IN["Qwen2.5-14B"], _LORA, SampleShape(), _TOKENS),
        MemoryCase("qwen2.5-32b-lora", BUILT_IN["Qwen2.5-32B"], _LORA, SampleShape(), _TOKENS, search=True),
    ),
}  # fmt: skip


def memory_cases_with(texts: Sequence[str], scale: str) -> list[MemoryCase]:
    """Cases of a scale (small, cuda) whose name contains each of `texts`; CPUs have small ones only."""
    return [case for case in MEMORY_CASES.get(scale, ()) if all(text in case.name for text in texts)]
