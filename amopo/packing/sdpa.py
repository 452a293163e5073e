"""Attention over the paths of a packed row by torch's scaled_dot_product_attention: any device, any dtype.

Contract
--------
`run_sdpa` takes queries `[T, Hq, D]`, keys and values of all paths `[sum of path lengths, Hkv, D]` and gives
`[T, Hq, Dv]`, as every kernel of `attention_backends` does: a loop over paths, causal, aligned at the bottom right.
With a softcap, which SDPA does not have, the products are written out. On a CPU it serves layers with a softcap, fp64,
and installations without the C++ operations.

On a CPU the queries of a layer with a sliding window come a few at a time, each time against the keys that any of them
sees: torch's kernel would compute the whole square of a path and mask most of it (a window of 256 in paths of 1500
tokens: 2.1x faster on two threads, forward and backward). Without a window a path is one call.
Pieces of 128 queries would skip the keys after them, which the kernel reads in blocks of 512; that saved a fifth of the
time on one thread, and lost a tenth on two, which are woken for every piece (paths of 600 tokens).

Masks are slices of one per layer, as large as the longest segment and path that need one.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterator, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from amopo.packing.layout import TreePaths

# At a time, at least, under a sliding window on a CPU.
FEWEST_QUERIES = 128


def run_sdpa(
    q: Tensor, k: Tensor, v: Tensor, paths: TreePaths, scaling: float, window: int | None, softcap: float | None
) -> Tensor:
    attend = _sdpa if softcap is None else functools.partial(_softcapped, softcap=softcap)
    groups, lengths_q, lengths_k = q.shape[1] // k.shape[1], *zip(*paths.lengths, strict=True)
    is_cut = window is not None and q.device.type == "cpu"
    at_once = max(FEWEST_QUERIES, window) if is_cut else paths.max_seqlen_q
    pieces = [list(_pieces(*lengths, at_once, window if is_cut else None)) for lengths in paths.lengths]

    def is_masked(size: tuple[int, int]) -> bool:
        return softcap is not None or not _is_square(*size, window)

    mask_of = _masks([size for path in pieces for piece in path if is_masked(size := _size(*piece))], window, q)
    outputs = []
    parts = zip(q.split(lengths_q), k.split(lengths_k), v.split(lengths_k), pieces, strict=True)
    for part_q, part_k, part_v, path in parts:
        for rows, seen in path:
            # [G, Hkv, L, D]: the heads of a group read the same keys, expanded without a copy
            piece_q = _cut(part_q, rows).unflatten(1, (-1, groups)).permute(2, 1, 0, 3)
            pieces_kv = (_cut(part, seen).transpose(0, 1) for part in (part_k, part_v))
            piece_k, piece_v = (piece.expand(groups, -1, -1, -1) for piece in pieces_kv)
            size = _size(rows, seen)
            mask = mask_of(*size) if is_masked(size) else None
            output = attend(piece_q, piece_k, piece_v, mask, scaling)
            outputs.append(output.permute(2, 1, 0, 3).flatten(1, 2))
    return torch.cat(outputs)


def kept_mask(lengths: Sequence[tuple[int, int]]) -> int:
    """Numbers in the mask that a layer keeps on a CPU for paths of these (queries, keys), without a window."""
    return math.prod(_largest([size for size in lengths if not _is_square(*size, None)]))


def _pieces(queries: int, keys: int, at_once: int, window: int | None) -> Iterator[tuple[slice, slice]]:
    """(queries, the keys that they see between them) of one path."""
    before = keys - queries
    for start in range(0, queries, at_once):
        stop = min(start + at_once, queries)
        first = 0 if window is None else max(0, before + start - window + 1)
        yield slice(start, stop), slice(first, before + stop)


def _cut(part: Tensor, rows: slice) -> Tensor:
    """`part[rows]`; a slice of everything would cost a copy and zeros of its size in the backward."""
    return part if rows == slice(0, part.shape[0]) else part[rows]


def _size(rows: slice, seen: slice) -> tuple[int, int]:
    return rows.stop - rows.start, seen.stop - seen.start


def _is_square(queries: int, keys: int, window: int | None) -> bool:
    """Whether `is_causal` says all that a mask would."""
    return queries == keys and (window is None or window >= keys)


def _largest(sizes: Sequence[tuple[int, int]]) -> tuple[int, int]:
    return (max(q for q, _ in sizes), max(k for _, k in sizes)) if sizes else (0, 0)


def _masks(sizes: Sequence[tuple[int, int]], window: int | None, q: Tensor) -> Callable[[int, int], Tensor]:
    """The mask of so many queries over so many keys, `[queries, keys]`, to be added to the scores."""
    if q.device.type != "cpu":  # kernels there want masks whose rows are aligned
        return lambda queries, keys: _additive(visible(queries, keys, window, q.device), q.dtype)
    # How far a query sees is a matter of its distance from the bottom right, where all masks are aligned.
    whole = _additive(visible(*_largest(sizes), window, q.device), q.dtype)
    return lambda queries, keys: whole[-queries:, -keys:]


def visible(queries: int, keys: int, window: int | None, device: torch.device) -> Tensor:
    """bool `[queries, keys]`: causal, aligned at the bottom right; of those the last `window` keys."""
    mask = torch.ones(queries, keys, dtype=torch.bool, device=device).tril(keys - queries)
    return mask if window is None else mask.triu(keys - queries - window + 1)


def _additive(mask: Tensor, dtype: torch.dtype) -> Tensor:
    return torch.zeros(mask.shape, dtype=dtype, device=mask.device).masked_fill_(~mask, -torch.inf)


def _sdpa(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, scaling: float) -> Tensor:
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=mask is None, scale=scaling)


def _softcapped(q: Tensor, k: Tensor, v: Tensor, mask: Tensor, scaling: float, *, softcap: float) -> Tensor:
    scores = softcap * torch.tanh(q @ k.transpose(-2, -1) * (scaling / softcap))
    wide = torch.promote_types(q.dtype, torch.float32)
    return (scores.to(wide) + mask).softmax(-1).to(q.dtype) @ v
