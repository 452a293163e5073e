"""The index tensors that tie a packed row to its sequences.

Contract
--------
`TreeLayout` describes one packed row of T tokens that holds S = B * K * 2 sequences (B samples, K objectives), ordered
(sample, objective, chosen | rejected). Its tensors are made on the host by `amopo.packing.pack`:

- `row_index` int64 [R]: which hidden rows (of the row flattened to [T, H]) enter the head;
- `row_target` int64 [R]: the token that each of those rows predicts. The last prompt token predicts the first response
  token, so a row is never its own label shifted by hand;
- `fan_out` int64 [N] or None: response token (in sequence order) -> entry of `row_index`. None means that every
  response token has its own row, R = N;
- `offsets` int64 [S + 1]: response tokens of sequence s are `offsets[s] : offsets[s + 1]` of those N;
- `max_target`: largest target id, known on the host, so that a label beyond the vocabulary is found without a sync;
- `num_tokens`: tokens of all sequences, padding not counted;
- `cu_seqlens` int32 [S + 1]: where each sequence starts in the row (one entry more where padding was appended, which
  is a document of its own); `max_seqlen`: the longest of those documents.

Memory: 16 R + 8 (N if fan_out) + 12 S bytes.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class TreeLayout:
    """Which hidden rows predict which tokens, and to which sequences those tokens belong."""

    num_samples: int
    num_objectives: int
    row_index: torch.Tensor
    row_target: torch.Tensor
    fan_out: torch.Tensor | None
    offsets: torch.Tensor
    max_target: int
    num_tokens: int
    cu_seqlens: torch.Tensor
    max_seqlen: int

    @property
    def num_sequences(self) -> int:
        """S = B * K * 2."""
        return self.num_samples * self.num_objectives * 2

    def to(self, device: torch.device | str, non_blocking: bool = False) -> TreeLayout:
        """The same layout with its tensors on `device`."""
        return self._map(lambda tensor: tensor.to(device, non_blocking=non_blocking))

    def pin_memory(self) -> TreeLayout:
        """The same layout in page-locked memory (torch's DataLoader calls this)."""
        return self._map(torch.Tensor.pin_memory)

    def _map(self, function: Callable[[torch.Tensor], torch.Tensor]) -> TreeLayout:
        changed = {}
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if isinstance(value, torch.Tensor):
                changed[field.name] = function(value)
        return dataclasses.replace(self, **changed)
