"""Packing: the sequences of several samples, written end to end into one row.

Contract
--------
`pack(samples, sharing="none")` takes B samples of the same K and returns a `PackedBatch` on the CPU:

- `input_ids` int64 [1, T]: the 2K sequences of sample 0, then those of sample 1, ...; inside a sample by objective,
  chosen before rejected; each sequence is its prompt followed by its response;
- `position_ids` int64 [1, T]: restart at 0 with every sequence. They are also what tells transformers where one
  sequence ends, as long as no attention mask and no cache are passed (see `amopo.trainer.forward`);
- `layout`: a `TreeLayout`; `sample_ids` int64 [B].

T = sum over samples of `packed_length(sample)`. `pad_to_multiple_of` appends one document of token 0, with positions of
its own and no targets, which no sequence can see.

Unsupported (raises): no samples, samples of different K, any `sharing` other than "none".
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import accumulate, chain

import torch

from amopo.packing.layout import TreeLayout
from amopo.packing.sample import TokenizedSample, sample_id_to_int64

SHARING = ("none",)


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


def check_sharing(sharing: str) -> None:
    """Raise for a layout that this version does not have."""
    if sharing not in SHARING:
        raise ValueError(f"sharing={sharing!r} is not known; known: {', '.join(map(repr, SHARING))}")


def packed_length(sample: TokenizedSample, *, sharing: str = "none") -> int:
    """Tokens that one sample takes in a packed row: 2 * (sum of prompts) + K * (chosen + rejected) for "none"."""
    check_sharing(sharing)
    prompts = sum(map(len, sample.prompts))
    return 2 * prompts + sample.num_objectives * (len(sample.chosen) + len(sample.rejected))


def pack(
    samples: Sequence[TokenizedSample], *, sharing: str = "none", pad_to_multiple_of: int | None = None
) -> PackedBatch:
    """Write all sequences of all samples into one row."""
    check_sharing(sharing)
    samples = list(samples)
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
    if pad_to_multiple_of is not None and pad_to_multiple_of < 1:
        raise ValueError(f"pad_to_multiple_of must be at least 1, got {pad_to_multiple_of}")

    # Lists are joined in C; the loops run over sequences, not over tokens.
    parts: list[list[int]] = []
    prompt_lengths: list[int] = []
    response_lengths: list[int] = []
    for sample in samples:
        for prompt in sample.prompts:
            for response in (sample.chosen, sample.rejected):
                parts += (prompt, response)
                prompt_lengths.append(len(prompt))
                response_lengths.append(len(response))
    num_tokens = sum(prompt_lengths) + sum(response_lengths)
    padding = -num_tokens % (pad_to_multiple_of or 1)
    if num_tokens + padding >= 2**31:
        raise ValueError(f"a packed row of {num_tokens + padding} tokens is beyond int32 offsets; pack fewer samples")
    input_ids = torch.tensor(list(chain(*parts, [0] * padding)), dtype=torch.int64)

    lengths = [p + r for p, r in zip(prompt_lengths, response_lengths, strict=True)]
    documents = lengths + ([padding] if padding else [])
    starts = torch.tensor(list(accumulate(documents, initial=0)), dtype=torch.int64)
    position_ids = torch.arange(num_tokens + padding) - torch.repeat_interleave(starts[:-1], torch.tensor(documents))

    response = torch.tensor(response_lengths)
    offsets = torch.tensor(list(accumulate(response_lengths, initial=0)), dtype=torch.int64)
    # Response token j of sequence s is predicted one position before it: start + prompt - 1 + j.
    first_row = starts[: len(lengths)] + torch.tensor(prompt_lengths) - 1
    row_index = torch.arange(int(offsets[-1])) + torch.repeat_interleave(first_row - offsets[:-1], response)

    layout = TreeLayout(
        num_samples=len(samples),
        num_objectives=num_objectives,
        row_index=row_index,
        row_target=input_ids[row_index + 1],
        fan_out=None,
        offsets=offsets,
        max_target=max(max(max(s.chosen), max(s.rejected)) for s in samples),
        num_tokens=num_tokens,
        cu_seqlens=starts.to(torch.int32),
        max_seqlen=max(documents),
    )
    sample_ids = torch.tensor([sample_id_to_int64(s.id) for s in samples], dtype=torch.int64)
    return PackedBatch(input_ids[None], position_ids[None], layout, sample_ids)
