"""The index tensors that tie a packed row to its sequences.

Contract
--------
`TreeLayout` describes one packed row of T tokens that holds S = B * K * 2 sequences (B samples, K objectives), ordered
(sample, objective, chosen | rejected). Its tensors are made on the host by `amopo.packing.pack`:

- `row_index` int64 [R]: which hidden rows (of the row flattened to [T, H]) enter the head;
- `row_target` int64 [R]: the token that each of those rows predicts. A branch token predicts the first token of several
  children, so a row is never its own label shifted by hand, and one hidden row can stand here several times;
- `fan_out` int64 [N] or None: response token (in sequence order) -> entry of `row_index`. None means that every
  response token has its own row, R = N;
- `offsets` int64 [S + 1]: response tokens of sequence s are `offsets[s] : offsets[s + 1]` of those N;
- `preferred` int64 [B, K, 2] or None: the sequences of each (sample, objective) as that objective ranks them, the
  better response first. None: chosen first everywhere;
- `present` bool [B, K] or None: whether the objective prefers one of the two at all. None: all do. An objective that
  is absent has no weight and no loss in that sample;
- `max_target`: largest target id, known on the host, so that a label beyond the vocabulary is found without a sync;
- `num_tokens`: tokens in the row, padding not counted; `represented_tokens`: of the S sequences written out;
- `paths`: what attention needs, a `TreePaths`; None for a layout that no model will see;
- `rows`, `fan`: `row_index` and `fan_out` sorted by what they read, so that gradients of a row that is read several
  times are added in fp32, always in the same order. None: torch's own indexing, in the dtype at hand.

`TreePaths` cuts the row into segments. The row stands depth-first; segment i runs from just after leaf i - 1 through
leaf i, and everything in it lies on leaf i's path. So every token is a query exactly once, and its keys are the tokens
of that path up to itself: causal attention, aligned at the bottom right, of segment i against path i.

Memory: 16 R + 8 N (if fan_out) + 8 S + 8 P bytes for P paths, and 16 bytes per key of the paths where they share.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

import torch

from amopo_kernels.gather import GatherIndex

_Part = TypeVar("_Part")


def _map_tensors(part: _Part, function: Callable[[torch.Tensor], torch.Tensor]) -> _Part:
    """The same dataclass with `function` applied to every tensor in it, also in those of its fields."""
    changed: dict[str, Any] = {}
    for field in dataclasses.fields(part):
        value = getattr(part, field.name)
        if isinstance(value, torch.Tensor):
            changed[field.name] = function(value)
        elif dataclasses.is_dataclass(value):
            changed[field.name] = _map_tensors(value, function)
    return dataclasses.replace(part, **changed)


@dataclass(frozen=True)
class TreePaths:
    """Segments of a packed row and the root-to-leaf paths that they attend to; P of each.

    lengths: (queries, keys) of each segment, on the host. cu_seqlens_q, cu_seqlens_k: int32 [P + 1], where segments
    start in the row and paths among the gathered keys. keys: row positions of all paths, one after the other; None
    where every path is its segment. subtree_end: int64 [T]; token k is visible to q iff k <= q < subtree_end[k].
    """

    lengths: tuple[tuple[int, int], ...]
    cu_seqlens_q: torch.Tensor
    cu_seqlens_k: torch.Tensor
    keys: GatherIndex | None
    subtree_end: torch.Tensor

    @property
    def max_seqlen_q(self) -> int:
        """The longest segment."""
        return max(queries for queries, _ in self.lengths)

    @property
    def max_seqlen_k(self) -> int:
        """The longest path."""
        return max(keys for _, keys in self.lengths)

    def to(self, device: torch.device | str, non_blocking: bool = False) -> TreePaths:
        """The same paths on `device`: accelerate calls this for each layer of a model that is spread over devices."""
        return _map_tensors(self, lambda tensor: tensor.to(device, non_blocking=non_blocking))


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
    represented_tokens: int = 0
    paths: TreePaths | None = None
    rows: GatherIndex | None = None
    fan: GatherIndex | None = None
    preferred: torch.Tensor | None = None
    present: torch.Tensor | None = None

    @property
    def num_sequences(self) -> int:
        """S = B * K * 2."""
        return self.num_samples * self.num_objectives * 2

    @property
    def is_shared(self) -> bool:
        """Whether some token stands for several sequences."""
        return self.fan_out is not None or (self.paths is not None and self.paths.keys is not None)

    def to(self, device: torch.device | str, non_blocking: bool = False) -> TreeLayout:
        """The same layout with its tensors on `device`."""
        return _map_tensors(self, lambda tensor: tensor.to(device, non_blocking=non_blocking))

    def pin_memory(self) -> TreeLayout:
        """The same layout in page-locked memory (torch's DataLoader calls this)."""
        return _map_tensors(self, torch.Tensor.pin_memory)
