"""From a list of samples to a rank's batches of packed rows.

Contract
--------
`read_samples(dataset, ...)` checks a sequence of `TokenizedSample` once and returns a `SampleTable` with the packed
length of each and a fingerprint of all. It raises, naming the sample, for: no samples, another K than the objectives,
a sample larger than the token budget, token ids beyond the vocabulary, ids that occur twice (the weights' noise is
keyed by them), samples with signs where `orientation` is "overall", fewer samples than ranks, a sequence with more
tokens than the model has positions. Rotary positions have no end: sequences beyond the length that the model was made
for are a warning.

`PackedLoader` is a torch DataLoader over such a table. Each batch is a dictionary: `input_ids` and `position_ids`
[1, T], `amopo_layout`, `amopo_sample_ids` int64 [B], `amopo_num_samples` (B, or 0 for a filler, which counts for
nothing).
It already holds this rank's own batches: nothing may shard it again.
"""

from __future__ import annotations

import array
import hashlib
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch.utils.data import DataLoader, Dataset

from amopo.data.pairs import PER_OBJECTIVE
from amopo.packing.batching import TokenBudgetBatchSampler
from amopo.packing.pack import pack, packed_size
from amopo.packing.sample import TokenizedSample, sample_id_to_int64

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Positions:
    """How many positions a model was made for, and whether there are no others (a table that is looked up)."""

    count: int | None = None
    is_table: bool = False


_HAS_SIGNS = (
    "has signs, so its objectives prefer different responses, but orientation='overall' trains one winner for all; set "
    "orientation='per_objective', or make the samples without signs"
)


def _warn_without_signs(name: str, oriented: int, orientation: str) -> None:
    if orientation == PER_OBJECTIVE and not oriented:
        logger.warning(
            "%s: orientation='per_objective', but no sample has a sign other than +1: every objective prefers the "
            "chosen response, or the samples were made without signs",
            name,
        )


@dataclass(frozen=True)
class SampleTable:
    """Checked samples, their packed lengths and rows of the head, a fingerprint of ids and tokens in their order."""

    samples: Sequence[TokenizedSample]
    lengths: list[int]
    fingerprint: str
    rows: list[int] = field(default_factory=list)

    def names(self) -> list[int | str]:
        """The samples' ids."""
        return [self.samples[i].id for i in range(len(self.lengths))]


def read_samples(
    dataset: Sequence[TokenizedSample],
    *,
    name: str,
    num_objectives: int,
    tokens_per_batch: int,
    vocab_size: int | None = None,
    world_size: int = 1,
    sharing: str = "pair",
    positions: Positions = Positions(),
    orientation: str = "overall",
) -> SampleTable:
    """Check all samples of a dataset (called `name` in messages), in one pass."""
    if isinstance(dataset, Mapping):
        raise TypeError(
            f"{name} must be a list of TokenizedSample, got a {type(dataset).__name__} with the keys "
            f"{', '.join(map(repr, list(dataset)[:5])) or '(none)'}; pass one of its entries"
        )
    if not hasattr(dataset, "__len__") or not hasattr(dataset, "__getitem__"):
        raise TypeError(f"{name} must be a list of TokenizedSample, got {type(dataset).__name__}")
    if len(dataset) == 0:
        raise ValueError(f"{name} is empty; give at least one sample")
    if len(dataset) < world_size:
        raise ValueError(
            f"{name} has {len(dataset)} samples for {world_size} ranks, and every rank needs one; start fewer "
            "processes or give more samples"
        )
    lengths: list[int] = []
    rows: list[int] = []
    seen: dict[int, int | str] = {}
    longest, longest_id = 0, None
    oriented = 0
    digest = hashlib.blake2b(digest_size=16)
    for index in range(len(dataset)):
        sample = dataset[index]
        if not isinstance(sample, TokenizedSample):
            raise TypeError(f"{name}[{index}] must be a TokenizedSample, got {type(sample).__name__}")
        if sample.num_objectives != num_objectives:
            raise ValueError(
                f"{name}: sample {sample.id!r} has {sample.num_objectives} prompts, but there are {num_objectives} "
                "objectives; write one prompt per objective"
            )
        oriented += sample.signs is not None
        if oriented and orientation != PER_OBJECTIVE:
            raise ValueError(f"{name}: sample {sample.id!r} {_HAS_SIGNS}")
        size = packed_size(sample, sharing=sharing)
        length = size.tokens
        if length > tokens_per_batch:
            raise ValueError(
                f"{name}: sample {sample.id!r} takes {length} tokens packed (all {2 * num_objectives} sequences), more "
                f"than tokens_per_batch={tokens_per_batch}; set tokens_per_batch to at least {length} or shorten it"
            )
        sequences = (*sample.prompts, sample.chosen, sample.rejected)
        largest = max(map(max, sequences))
        if vocab_size is not None and largest >= vocab_size:
            raise ValueError(
                f"{name}: sample {sample.id!r} has token id {largest}, but the model's vocabulary has {vocab_size} "
                "entries; was another tokenizer used?"
            )
        tokens = max(map(len, sample.prompts)) + max(len(sample.chosen), len(sample.rejected))
        if positions.is_table and positions.count is not None and tokens > positions.count:
            raise ValueError(
                f"{name}: the longest sequence of sample {sample.id!r} has {tokens} tokens, but the model has "
                f"{positions.count} positions; shorten the sample (max_prompt_length, max_response_length)"
            )
        if tokens > longest:
            longest, longest_id = tokens, sample.id
        key = sample_id_to_int64(sample.id)
        if key in seen:
            raise ValueError(
                f"{name}: sample id {sample.id!r} occurs twice; the weights' noise is keyed by it, so give every "
                "sample an id of its own"
            )
        seen[key] = sample.id
        lengths.append(length)
        rows.append(size.rows)
        digest.update(repr(sample.id).encode())
        for sequence in sequences:
            digest.update(array.array("q", [len(sequence), *sequence]).tobytes())
        if sample.signs is not None:
            digest.update(repr(sample.signs).encode())
    _warn_without_signs(name, oriented, orientation)
    if positions.count is not None and longest > positions.count:
        logger.warning(
            "%s: the longest sequence (sample %r) has %d tokens, more than the %d positions that the model was made "
            "for (max_position_embeddings); its log-probs may be poor there",
            name,
            longest_id,
            longest,
            positions.count,
        )
    return SampleTable(dataset, lengths, digest.hexdigest(), rows)


class _Items(Dataset):
    """Samples by index; ~index gives the sample as a filler."""

    def __init__(self, samples: Sequence[TokenizedSample]) -> None:
        self.samples = samples

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> tuple[TokenizedSample, bool]:
        return (self.samples[~index], True) if index < 0 else (self.samples[index], False)


@dataclass(frozen=True)
class PackCollator:
    """Packs a batch of samples into the dictionary that the trainer takes."""

    sharing: str = "pair"

    def __call__(self, items: list[tuple[TokenizedSample, bool]]) -> dict[str, Any]:
        batch = pack([sample for sample, _ in items], sharing=self.sharing)
        return {
            "input_ids": batch.input_ids,
            "position_ids": batch.position_ids,
            "amopo_layout": batch.layout,
            "amopo_sample_ids": batch.sample_ids,
            "amopo_num_samples": sum(not is_filler for _, is_filler in items),
        }


class PackedLoader(DataLoader):
    """A DataLoader of packed batches whose order follows the epoch."""

    def __init__(
        self, table: SampleTable, sampler: TokenBudgetBatchSampler, *, sharing: str = "pair", **options: Any
    ) -> None:
        # Every iteration draws a seed for its workers. From a generator of its own: drawn from the global one, it would
        # change the model's dropout, and an evaluation would change the training that follows.
        super().__init__(
            _Items(table.samples),
            batch_sampler=sampler,
            collate_fn=PackCollator(sharing=sharing),
            generator=torch.Generator().manual_seed(0),
            **options,
        )

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch whose batches come next."""
        self.batch_sampler.set_epoch(epoch)


def plan_training(
    table: SampleTable, *, num_train_epochs: float, max_steps: int, gradient_accumulation_steps: int, **options: Any
) -> TokenBudgetBatchSampler:
    """The sampler for all epochs of a run, whose number follows from `max_steps` where that is positive.

    `options` are those of `TokenBudgetBatchSampler`.
    """

    def sampler(num_epochs: int) -> TokenBudgetBatchSampler:
        return TokenBudgetBatchSampler(
            table.lengths, rows=table.rows, num_epochs=num_epochs, names=table.names(), **options
        )

    if max_steps <= 0:
        return sampler(max(1, -int(-num_train_epochs // 1)))
    # More epochs can only need more batches per epoch, and so fewer epochs: two rounds settle it.
    planned, needed = sampler(1), 1
    while True:
        steps = -(-len(planned) // gradient_accumulation_steps)
        needed = -(-max_steps // steps)
        if needed <= planned.num_epochs:
            return planned
        planned = sampler(needed)
