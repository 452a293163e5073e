"""Attention over the paths of a packed row by torch's scaled_dot_product_attention: any device, any dtype.

Contract
--------
`run_sdpa` takes queries `[T, Hq, D]`, keys and values of all paths `[sum of path lengths, Hkv, D]` and gives
`[T, Hq, Dv]`, as every kernel of `attention_backends` does: a loop over paths, causal, aligned at the bottom right.
With a softcap, which SDPA does not have, the products are written out.

On a CPU a path's queries come a few at a time, each time against the keys that any of them sees. torch's kernel reads
keys in blocks of 512, under a causal mask too, so that a path of ordinary length would cost its whole square; and a
window would save nothing. Masks are slices of one of `[QUERIES_ON_CPU, longest path]` per layer, and do not grow with
the number of paths.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from amopo.packing.layout import TreePaths

# Of one path at a time, on a CPU.
QUERIES_ON_CPU = 128


def run_sdpa(
    q: Tensor, k: Tensor, v: Tensor, paths: TreePaths, scaling: float, window: int | None, softcap: float | None
) -> Tensor:
    attend = _sdpa if softcap is None else functools.partial(_softcapped, softcap=softcap)
    groups, lengths_q, lengths_k = q.shape[1] // k.shape[1], *zip(*paths.lengths, strict=True)
    at_once = QUERIES_ON_CPU if q.device.type == "cpu" else paths.max_seqlen_q
    mask_of = _masks(paths, at_once, window, q)
    outputs = []
    for part_q, part_k, part_v in zip(q.split(lengths_q), k.split(lengths_k), v.split(lengths_k), strict=True):
        for rows, seen in _pieces(part_q.shape[0], part_k.shape[0], at_once, window):
            queries, keys = rows.stop - rows.start, seen.stop - seen.start
            is_plain = softcap is None and queries == keys and (window is None or window >= keys)
            mask = None if is_plain else mask_of(queries, keys)
            # [G, Hkv, L, D]: the heads of a group read the same keys, expanded without a copy
            piece_q = part_q[rows].unflatten(1, (-1, groups)).permute(2, 1, 0, 3)
            pieces = (part[seen].transpose(0, 1).expand(groups, -1, -1, -1) for part in (part_k, part_v))
            output = attend(piece_q, *pieces, mask, scaling)
            outputs.append(output.permute(2, 1, 0, 3).flatten(1, 2))
    return torch.cat(outputs)


def _pieces(queries: int, keys: int, at_once: int, window: int | None) -> Iterator[tuple[slice, slice]]:
    """(queries, the keys that they see between them) of one path."""
    before = keys - queries
    for start in range(0, queries, at_once):
        stop = min(start + at_once, queries)
        first = 0 if window is None else max(0, before + start - window + 1)
        yield slice(start, stop), slice(first, before + stop)


def kept_mask(lengths: Sequence[tuple[int, int]]) -> int:
    """Numbers in the mask that a layer keeps on a CPU for paths of these (queries, keys), without a window."""
    needed = [queries != keys or queries > QUERIES_ON_CPU for queries, keys in lengths]
    longest_segment, longest_path = (max(sizes) for sizes in zip(*lengths, strict=True))
    return min(QUERIES_ON_CPU, longest_segment) * longest_path if any(needed) else 0


def _masks(paths: TreePaths, at_once: int, window: int | None, q: Tensor) -> Callable[[int, int], Tensor]:
    """The mask of so many queries over so many keys, `[queries, keys]`, to be added to the scores."""
    if q.device.type != "cpu":  # kernels want masks whose rows are aligned
        return lambda queries, keys: _additive(visible(queries, keys, window, q.device), q.dtype)
    # How far a query sees is a matter of its distance from the bottom right, where all masks are aligned.
    whole = _additive(visible(min(at_once, paths.max_seqlen_q), paths.max_seqlen_k, window, q.device), q.dtype)
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
