"""Inputs of the benchmarks: named head shapes, with flat or peaked predictions.

`make_case(shape, dtype, device, inputs)` gives hidden states `[N, H]`, a head `[V, H]`, targets `[N]`, an upstream
gradient per row and S sequences of equal length. Equal, because some peers take nothing else.

    flat     logits of spread 0.6: entropy about ln V
    peaked   eight likely tokens per row, the hidden states scaled until the mean entropy is 1.5 nats

Targets of the peaked case are drawn from the likely tokens (3 of 100 from the whole vocabulary), so that log-probs run
from about -0.1 to far below -15, as those of a trained model do. The same shape, dtype and seed give the same case.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import torch
from torch import Tensor

INPUTS = ("peaked", "flat")
TARGET_ENTROPY = 1.5
_SPREAD = 0.6  # standard deviation of flat logits
_LIKELY, _GAP = 8, 0.8  # likely tokens per row, and the distance between their logits


@dataclass(frozen=True)
class HeadShape:
    """N response rows, H hidden size, V vocabulary."""

    name: str
    rows: int
    hidden: int
    vocab: int

    @property
    def product_flops(self) -> int:
        """FLOPs of one of the head's products: 2NVH."""
        return 2 * self.rows * self.hidden * self.vocab

    @property
    def sequences(self) -> int:
        """S: sequences of 128 rows, at least 2, an even number."""
        return max(2, self.rows // 128 // 2 * 2)

    def __str__(self) -> str:
        return f"{self.name}-{self.rows}x{self.hidden}x{self.vocab}"


def _heads(name: str, hidden: int, vocab: int, rows: tuple[int, ...]) -> list[HeadShape]:
    return [HeadShape(name, count, hidden, vocab) for count in rows]


TINY = [HeadShape("tiny", 128, 64, 1009)]
SHAPES = {
    "small": TINY,
    # the head of a 0.5B model on two CPU cores
    "cpu": _heads("qwen2.5-0.5b", 896, 151936, (2048,)),
    "cuda": [
        *_heads("qwen2.5-7b", 3584, 152064, (2048, 8192, 16384)),
        *_heads("qwen2.5-14b-32b", 5120, 152064, (2048, 8192, 16384)),
    ],
}


@dataclass
class HeadCase:
    """Tensors of one benchmark case; `hidden` and `weight` are plain tensors, providers make leaves of them."""

    shape: HeadShape
    inputs: str
    hidden: Tensor
    weight: Tensor
    targets: Tensor
    upstream: Tensor
    entropy: float = math.nan
    cache: dict = field(default_factory=dict, repr=False)

    @property
    def dtype(self) -> torch.dtype:
        return self.hidden.dtype

    @property
    def device(self) -> torch.device:
        return self.hidden.device

    @property
    def sequences(self) -> int:
        return self.shape.sequences

    @property
    def length(self) -> int:
        """Rows per sequence."""
        return self.shape.rows // self.sequences

    def leaves(self, frozen: bool) -> tuple[Tensor, Tensor]:
        """hidden and weight as leaves of the autograd graph; the weight without a gradient when `frozen`."""
        return self.hidden.detach().requires_grad_(), self.weight.detach().requires_grad_(not frozen)


def make_case(
    shape: HeadShape, dtype: torch.dtype, device: torch.device | str, inputs: str = "peaked", seed: int = 0
) -> HeadCase:
    """Build a case. The numbers come from the device's own generator."""
    if inputs not in INPUTS:
        raise ValueError(f"inputs must be one of {', '.join(INPUTS)}, got {inputs!r}")
    if shape.rows % shape.sequences:
        raise ValueError(f"{shape}: {shape.rows} rows do not divide into {shape.sequences} sequences of equal length")
    device = torch.device(device)
    generator = torch.Generator(device).manual_seed(seed)

    def normal(*size: int) -> Tensor:
        return torch.randn(*size, generator=generator, device=device)

    deviation = 0.02
    weight = (normal(shape.vocab, shape.hidden) * deviation).to(dtype)
    targets = torch.randint(0, shape.vocab, (shape.rows,), generator=generator, device=device)
    if inputs == "flat":
        hidden = normal(shape.rows, shape.hidden) * (_SPREAD / deviation / math.sqrt(shape.hidden))
    else:
        likely = torch.randint(0, shape.vocab, (shape.rows, _LIKELY), generator=generator, device=device)
        gains = math.log(shape.vocab) + 4.0 - _GAP * torch.arange(_LIKELY, device=device)
        hidden = torch.zeros(shape.rows, shape.hidden, device=device)
        for place in range(_LIKELY):
            hidden += gains[place] * weight[likely[:, place]].float()
        hidden /= deviation**2 * shape.hidden
        odds = torch.exp(-_GAP * torch.arange(_LIKELY, device=device)).expand(shape.rows, -1)
        drawn = likely.gather(1, torch.multinomial(odds, 1, generator=generator))[:, 0]
        anywhere = torch.rand(shape.rows, generator=generator, device=device) < 0.03
        targets = torch.where(anywhere, targets, drawn)
        hidden *= _scale_to_entropy(hidden[:64], weight)
    hidden = hidden.to(dtype)
    # Preference losses give one coefficient per sequence: minus for chosen, plus for rejected, divided by its length.
    signs = torch.tensor([-1.0, 1.0], device=device).repeat(shape.sequences // 2)
    size = 0.2 + 0.8 * torch.rand(shape.sequences, generator=generator, device=device)
    length = shape.rows // shape.sequences
    upstream = (signs * size / (shape.sequences // 2) / length).repeat_interleave(length)
    return HeadCase(shape, inputs, hidden, weight, targets, upstream, _entropy(hidden[:64].float(), weight))


def _entropy(hidden: Tensor, weight: Tensor) -> float:
    logits = torch.mm(hidden.float(), weight.float().t())
    return float(torch.special.entr(torch.softmax(logits, -1)).sum(-1).mean())


def _scale_to_entropy(hidden: Tensor, weight: Tensor) -> float:
    """Factor on hidden states that brings the mean entropy to `TARGET_ENTROPY`, found by bisection."""
    logits = torch.mm(hidden.float(), weight.float().t())
    low, high = 0.25, 4.0
    for _ in range(20):
        middle = math.sqrt(low * high)
        entropy = float(torch.special.entr(torch.softmax(logits * middle, -1)).sum(-1).mean())
        low, high = (middle, high) if entropy > TARGET_ENTROPY else (low, middle)
    return math.sqrt(low * high)
