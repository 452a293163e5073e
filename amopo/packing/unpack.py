"""The sequences of a packed row, written out again.

`unpack(batch)` gives the S = B * K * 2 sequences as (prompt, response) token lists, in the order of the layout;
`samples_of(batch)` the B samples, with their int64 ids. Read off the row and its layout alone, so that a self-check of
a packed batch needs nothing else. For checks, not for training: a loop over sequences.
"""

from __future__ import annotations

import torch

from amopo.packing.layout import TreeLayout
from amopo.packing.pack import PackedBatch
from amopo.packing.sample import TokenizedSample


def unpack(batch: PackedBatch) -> list[tuple[list[int], list[int]]]:
    """(prompt, response) of every sequence."""
    layout, row = batch.layout.to("cpu"), batch.input_ids[0].cpu()
    ends, positions = layout.paths.subtree_end, torch.arange(len(row))
    offsets = layout.offsets.tolist()
    sequences = []
    for start, stop in zip(offsets[:-1], offsets[1:], strict=True):
        entries = torch.arange(start, stop) if layout.fan_out is None else layout.fan_out[start:stop]
        last_of_prompt = layout.row_index[entries[0]]
        # A token's path: the tokens up to it in whose subtree it stands.
        path = (positions <= last_of_prompt) & (ends > last_of_prompt)
        sequences.append((row[path].tolist(), layout.row_target[entries].tolist()))
    return sequences


def samples_of(batch: PackedBatch) -> list[TokenizedSample]:
    """The samples that were packed; ids that were strings come back as the numbers that stand for them."""
    sequences = unpack(batch)
    per_sample = 2 * batch.layout.num_objectives
    signs = _signs(batch.layout.to("cpu"))
    samples = []
    for number, id in enumerate(batch.sample_ids.tolist()):
        mine = sequences[number * per_sample : (number + 1) * per_sample]
        prompts = [prompt for prompt, _ in mine[0::2]]
        samples.append(TokenizedSample(prompts, mine[0][1], mine[1][1], id, signs and signs[number]))
    return samples


def _signs(layout: TreeLayout) -> list[list[int]] | None:
    """Signs of every sample, from the order of its sequences and the mask of its objectives."""
    if layout.preferred is None and layout.present is None:
        return None
    signs = torch.ones(layout.num_samples, layout.num_objectives, dtype=torch.int64)
    if layout.preferred is not None:
        signs -= 2 * (layout.preferred[..., 0] % 2)
    if layout.present is not None:
        signs *= layout.present
    return signs.tolist()
