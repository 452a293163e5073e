"""From checked samples to a rank's batches of packed rows.

Contract
--------
`PackedLoader` is a torch DataLoader over a `SampleTable`. Each batch is a dictionary: `input_ids` and `position_ids`
[1, T], `amopo_layout`, `amopo_sample_ids` int64 [B], `amopo_num_samples` (B, or 0 for a filler, which counts for
nothing). It already holds this rank's own batches: nothing may shard it again.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.utils.data import DataLoader, Dataset

from amopo.packing.batching import TokenBudgetBatchSampler
from amopo.packing.pack import pack
from amopo.packing.sample import TokenizedSample
from amopo.trainer.samples import SampleTable


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
