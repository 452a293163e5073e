"""Packing: the sequences of several samples in one row, every token that they share once.

Contract
--------
`pack(samples, sharing="pair")` takes B samples of the same K and returns a `PackedBatch` on the CPU:

- `input_ids` int64 [1, T]: the samples one after the other, each as its token trie in depth-first order (see `trie`);
- `position_ids` int64 [1, T]: a token's distance from the beginning of its own sequence;
- `layout`: a `TreeLayout`, with the samples' signs as index pairs and a mask; `sample_ids` int64 [B].

With x a sample's prompt of p tokens, t_k its templates and w, l its responses, T is, per sample,

| sharing | tokens |
|---|---|
| "none" | sum_k 2 (t_k + p) + K (w + l) |
| "pair" | sum_k (t_k + p) + K (w + l) |
| "tree" | p + sum_k t_k + K (w + l), where the templates stand after x |

less what the two responses, or prompts with a common head, have in common besides. `pad_to_multiple_of` appends one
document of token 0, with positions of its own and no targets, which no sequence can see. Loops run over nodes and
sequences, never over tokens.

Unsupported (raises): no samples, samples of different K, an unknown `sharing`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import accumulate, chain

import torch

from amopo.packing.layout import TreeLayout, TreePaths
from amopo.packing.sample import TokenizedSample, sample_id_to_int64
from amopo.packing.trie import Forest, Node, build, check_sharing
from amopo_kernels.gather import GatherIndex


@dataclass(frozen=True)
class PackedBatch:
    """One packed row, the layout of its sequences, the ids of its samples."""

    input_ids: torch.Tensor
    position_ids: torch.Tensor
    layout: TreeLayout
    sample_ids: torch.Tensor

    @property
    def num_samples(self) -> int:
        """B."""
        return self.layout.num_samples

    def to(self, device: torch.device | str, non_blocking: bool = False) -> PackedBatch:
        """The same batch with its tensors on `device`."""
        return self._map(lambda part: part.to(device, non_blocking=non_blocking))

    def pin_memory(self) -> PackedBatch:
        """The same batch in page-locked memory."""
        return self._map(lambda part: part.pin_memory())

    def _map(self, function: Callable) -> PackedBatch:
        return PackedBatch(
            function(self.input_ids), function(self.position_ids), function(self.layout), function(self.sample_ids)
        )


@dataclass(frozen=True)
class PackedSize:
    """What one sample takes in a packed row: tokens of the row, rows of the head, tokens of its 2K sequences."""

    tokens: int
    rows: int
    represented: int


def represented_tokens(sample: TokenizedSample) -> int:
    """Tokens of the sample's 2K sequences, written out."""
    responses = len(sample.chosen) + len(sample.rejected)
    return 2 * sum(map(len, sample.prompts)) + sample.num_objectives * responses


def packed_size(sample: TokenizedSample, *, sharing: str = "pair") -> PackedSize:
    """Size of one sample; sizes of samples add up."""
    check_sharing(sharing)
    represented = represented_tokens(sample)
    if sharing == "none":  # known without a trie
        rows = sample.num_objectives * (len(sample.chosen) + len(sample.rejected))
        return PackedSize(represented, rows, represented)
    forest = build(sample, sharing)
    return PackedSize(forest.num_tokens, forest.num_rows, represented)


def packed_length(sample: TokenizedSample, *, sharing: str = "pair") -> int:
    """Tokens that one sample takes in a packed row."""
    return packed_size(sample, sharing=sharing).tokens


def pack(
    samples: Sequence[TokenizedSample], *, sharing: str = "pair", pad_to_multiple_of: int | None = None
) -> PackedBatch:
    """Write all sequences of all samples into one row."""
    check_sharing(sharing)
    samples = list(samples)
    num_objectives = _check_samples(samples)
    if pad_to_multiple_of is not None and pad_to_multiple_of < 1:
        raise ValueError(f"pad_to_multiple_of must be at least 1, got {pad_to_multiple_of}")

    forests = [build(sample, sharing) for sample in samples]
    num_tokens = sum(forest.num_tokens for forest in forests)
    padding = -num_tokens % (pad_to_multiple_of or 1)
    if num_tokens + padding >= 2**31:
        raise ValueError(f"a packed row of {num_tokens + padding} tokens is beyond int32 offsets; pack fewer samples")
    if padding:
        tail = Node([0] * padding, None, stop=padding)
        forests.append(Forest([tail], [], padding))

    table = _NodeTable(forests)
    input_ids = torch.tensor(list(chain.from_iterable(table.tokens)), dtype=torch.int64)
    is_response = torch.repeat_interleave(table.is_response, table.lengths)
    # A token is predicted by the one before it on its path: its neighbour, or the last token of its node's parent.
    before = torch.arange(-1, len(input_ids) - 1)
    before[table.starts] = table.before
    row_of = is_response.cumsum(0) - 1
    fan_out = row_of[_ranges(table.response_starts, table.response_lengths)]
    row_index, row_target = before[is_response], input_ids[is_response]
    has_own_rows = len(fan_out) == len(row_index) and torch.equal(fan_out, torch.arange(len(fan_out)))

    preferred, present = _preferences(samples, num_objectives)
    layout = TreeLayout(
        num_samples=len(samples),
        num_objectives=num_objectives,
        row_index=row_index,
        row_target=row_target,
        fan_out=None if has_own_rows else fan_out,
        offsets=_offsets(table.sequence_lengths),
        max_target=int(row_target.max()),
        num_tokens=num_tokens,
        represented_tokens=sum(map(represented_tokens, samples)),
        paths=table.paths(),
        rows=None if sharing == "none" else GatherIndex.of(row_index, num_tokens + padding),
        fan=None if has_own_rows else GatherIndex.of(fan_out, len(row_index)),
        preferred=preferred,
        present=present,
    )
    position_ids = _ranges(table.depths, table.lengths)
    sample_ids = torch.tensor([sample_id_to_int64(s.id) for s in samples], dtype=torch.int64)
    return PackedBatch(input_ids[None], position_ids[None], layout, sample_ids)


def _check_samples(samples: Sequence[TokenizedSample]) -> int:
    """K, which all samples have in common."""
    if not samples:
        raise ValueError("pack() got no samples; give at least one")
    for sample in samples:
        if not isinstance(sample, TokenizedSample):
            raise TypeError(f"pack() takes TokenizedSample objects, got {type(sample).__name__}")
    num_objectives = samples[0].num_objectives
    for sample in samples:
        if sample.num_objectives != num_objectives:
            raise ValueError(
                f"sample {sample.id!r} has K = {sample.num_objectives} objectives, but sample {samples[0].id!r} has "
                f"K = {num_objectives}; one call takes samples of the same K"
            )
    return num_objectives


def _preferences(
    samples: Sequence[TokenizedSample], num_objectives: int
) -> tuple[torch.Tensor | None, torch.Tensor | None]:
    """`preferred` and `present` of the layout; None each where signs change nothing."""
    if all(sample.signs is None for sample in samples):
        return None, None
    signs = torch.tensor([sample.signs or (1,) * num_objectives for sample in samples])
    sequences = torch.arange(2 * signs.numel()).view(*signs.shape, 2)
    swapped, present = signs < 0, signs != 0
    return (
        torch.where(swapped[..., None], sequences.flip(-1), sequences) if bool(swapped.any()) else None,
        None if bool(present.all()) else present,
    )


def _ranges(starts: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
    """`start, start + 1, ...` for every (start, length), one after the other."""
    ends = lengths.cumsum(0)
    return torch.arange(int(lengths.sum())) + torch.repeat_interleave(starts - (ends - lengths), lengths)


def _offsets(lengths: Sequence[int]) -> torch.Tensor:
    """int64 `[len + 1]`: where each part begins, and the end of the last."""
    return torch.tensor(list(accumulate(lengths, initial=0)), dtype=torch.int64)


class _NodeTable:
    """The nodes of a row as arrays, in the order of the row."""

    def __init__(self, forests: Sequence[Forest]) -> None:
        self.tokens: list[list[int]] = []
        starts, stops, depths, before, is_response = [], [], [], [], []
        response_starts, response_lengths, sequence_lengths = [], [], []
        segments: list[list[tuple[int, int]]] = []  # (start, length) of the nodes of each path
        first = 0
        for forest in forests:
            for node in forest.nodes:
                self.tokens.append(node.tokens)
                starts.append(first + node.start)
                stops.append(first + node.stop)
                depths.append(node.depth)
                above = node.parent if node.depth else None
                before.append(-1 if above is None else first + above.start + len(above.tokens) - 1)
                is_response.append(node.is_response)
                if not node.children:
                    segments.append([(first + n.start, len(n.tokens)) for n in _path(node)])
            for nodes in forest.responses:
                response_starts += [first + node.start for node in nodes]
                response_lengths += [len(node.tokens) for node in nodes]
                sequence_lengths.append(sum(len(node.tokens) for node in nodes))
            first += forest.num_tokens
        self.num_tokens = first
        self.starts, self.stops, self.depths, self.before = map(torch.tensor, (starts, stops, depths, before))
        self.lengths = torch.tensor([len(tokens) for tokens in self.tokens])
        self.is_response = torch.tensor(is_response)
        self.response_starts, self.response_lengths = torch.tensor(response_starts), torch.tensor(response_lengths)
        self.sequence_lengths = sequence_lengths
        self._segments = segments

    def paths(self) -> TreePaths:
        """Segments of the row and their root-to-leaf paths."""
        ends = [path[-1][0] + path[-1][1] for path in self._segments]
        queries = [end - before for before, end in zip([0, *ends], ends, strict=False)]
        keys = [sum(length for _, length in path) for path in self._segments]
        index = None
        if queries != keys:
            pieces = torch.tensor([piece for path in self._segments for piece in path])
            index = GatherIndex.of(_ranges(*pieces.unbind(1)), self.num_tokens)
        return TreePaths(
            lengths=tuple(zip(queries, keys, strict=True)),
            cu_seqlens_q=_offsets(queries).to(torch.int32),
            cu_seqlens_k=_offsets(keys).to(torch.int32),
            keys=index,
            subtree_end=torch.repeat_interleave(self.stops, self.lengths),
        )


def _path(node: Node) -> list[Node]:
    """From the root's child down to `node`."""
    nodes = []
    while node is not None and len(node.tokens):
        nodes.append(node)
        node = node.parent
    return nodes[::-1]
