"""The loaders of one trainer: which batches this rank sees.

Contract
--------
`Loaders(args, vocab_size, positions)` checks datasets by name (`add`) and makes `PackedLoader`s of this rank's batches.
Checked tables are kept for datasets that were added, and made anew for others. The training batches are planned once
per run (`plan_run`), since their number per epoch depends on how many epochs there will be. `training_sampler` is that
plan alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from amopo.packing.batching import TokenBudgetBatchSampler
from amopo.packing.sample import TokenizedSample
from amopo.trainer.batches import PackedLoader, plan_training
from amopo.trainer.config import AMoPOConfig
from amopo.trainer.samples import Positions, SampleTable, read_samples


def training_sampler(table: SampleTable, args: AMoPOConfig, **ranks: Any) -> TokenBudgetBatchSampler:
    """The training batches that `args` make of a table, on ranks as `TokenBudgetBatchSampler` takes them."""
    return plan_training(
        table,
        num_train_epochs=args.num_train_epochs,
        max_steps=args.max_steps,
        gradient_accumulation_steps=args.gradient_accumulation_steps,
        seed=args.seed if args.data_seed is None else args.data_seed,
        **_limits(args),
        **ranks,
    )


def _limits(args: AMoPOConfig) -> dict[str, Any]:
    return {
        "budget": args.tokens_per_batch,
        "max_samples_per_batch": args.max_samples_per_batch,
        "row_budget": args.rows_per_batch,
    }


class Loaders:
    """Checked datasets, and this rank's batches of them."""

    def __init__(self, args: AMoPOConfig, vocab_size: int, positions: Positions) -> None:
        self.args = args
        self.vocab_size = vocab_size
        self.positions = positions
        self._tables: dict[int, SampleTable] = {}
        self._train_sampler: TokenBudgetBatchSampler | None = None
        self.planned_ranks = args.world_size

    def add(self, dataset: Sequence[TokenizedSample], name: str) -> SampleTable:
        """Check a dataset, called `name` in messages, and keep its table."""
        # The table holds the dataset, so that no other object can get its id.
        return self._tables.setdefault(id(dataset), self._table(dataset, name))

    @property
    def longest(self) -> int:
        """Packed tokens of the longest sample of all datasets that were added."""
        return max(max(table.lengths) for table in self._tables.values())

    def _table(self, dataset: Sequence[TokenizedSample], name: str) -> SampleTable:
        if id(dataset) in self._tables:
            return self._tables[id(dataset)]
        return read_samples(
            dataset,
            name=name,
            num_objectives=self.args.num_objectives,
            tokens_per_batch=self.args.tokens_per_batch,
            vocab_size=self.vocab_size,
            world_size=self.args.world_size,
            sharing=self.args.sharing,
            positions=self.positions,
            orientation=self.args.orientation,
        )

    def plan_run(self, planned_ranks: int | None = None) -> None:
        """Plan the training batches anew, for the arguments as they are now, and for a run of so many ranks."""
        self._train_sampler = None
        self.planned_ranks = self.args.world_size if planned_ranks is None else planned_ranks

    def training(self, table: SampleTable) -> PackedLoader:
        """Shuffled batches, the same number in every planned epoch."""
        args = self.args
        if self._train_sampler is None:
            self._train_sampler = training_sampler(
                table, args, rank=args.process_index, world_size=args.world_size, planned_ranks=self.planned_ranks
            )
        return self._loader(table, self._train_sampler)

    def evaluation(self, dataset: Sequence[TokenizedSample]) -> PackedLoader:
        """Batches in a fixed order."""
        table = self._table(dataset, "eval_dataset")
        sampler = TokenBudgetBatchSampler(
            table.lengths,
            rows=table.rows,
            shuffle=False,
            names=table.names(),
            rank=self.args.process_index,
            world_size=self.args.world_size,
            **_limits(self.args),
        )
        return self._loader(table, sampler)

    def _loader(self, table: SampleTable, sampler: TokenBudgetBatchSampler) -> PackedLoader:
        args = self.args
        options: dict[str, Any] = {"pin_memory": args.dataloader_pin_memory and torch.cuda.is_available()}
        if args.dataloader_num_workers > 0:
            options |= {
                "num_workers": args.dataloader_num_workers,
                "persistent_workers": args.dataloader_persistent_workers,
                "prefetch_factor": args.dataloader_prefetch_factor,
            }
        return PackedLoader(table, sampler, sharing=args.sharing, **options)
