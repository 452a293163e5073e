"""Batches of whole samples, filled to a budget of tokens and of response rows.

Contract
--------
`TokenBudgetBatchSampler(lengths, budget=...)` yields lists of dataset indices; it goes into torch's
`DataLoader(batch_sampler=...)`.

- A sample is never split: its 2K sequences, and so its K weights, stay in one batch.
- A batch's tokens are at most `budget`, its samples at most `max_samples_per_batch`, its rows of the head (`rows`, one
  number per sample) at most `row_budget`.
- Batches are a pure function of (lengths, budget, seed, epoch, ...): nothing is remembered between epochs, so a resumed
  run computes the same batches again, and skipping the first n gives exactly the rest.
- Every rank gets its own batches, the same number on every rank and in every epoch, because a schedule is computed once
  and no rank may wait for another that has run out. The number is the largest that any of the `num_epochs` planned
  epochs needs, rounded up to whole rounds of ranks; epochs that need fewer have batches of several samples split.
- Where not even one batch per sample fills the last round, the missing ones (fewer than `world_size`) repeat a sample
  as a *filler*: the index i is written as ~i (negative). It keeps the rank in step and must count for nothing.
- `planned_ranks`, a multiple of `world_size`, plans for more ranks than there are: each of them then has, one after the
  other, the batches of `planned_ranks / world_size` of the planned ones. With as many times more micro-batches per
  optimizer step, the steps consist of the same samples. A run goes on so on fewer ranks.
- With `shuffle`, every epoch visits all samples once in a new order.

Filling: best-fit-decreasing inside shuffled windows of 512 samples. On long-tailed lengths it fills about 98 % of the
budget; next-fit fills 86 %. Ranks of one round get batches of similar size, so none waits long.

Unsupported (raises): an empty dataset, a sample larger than the budget, more ranks than samples, an epoch beyond the
planned ones.
"""

from __future__ import annotations

import heapq
import math
import random
from array import array
from bisect import bisect_left, insort
from collections.abc import Iterator, Sequence
from itertools import count

from torch.utils.data import Sampler

WINDOW = 512


def best_fit_decreasing(
    indices: Sequence[int],
    lengths: Sequence[int],
    *,
    budget: int,
    max_samples: int | None = None,
    rows: Sequence[int] | None = None,
    row_budget: int | None = None,
) -> list[list[int]]:
    """Distribute `indices` over bins of `budget` tokens: longest first, each into the fullest bin that takes it.

    A bin takes at most `max_samples` samples and, where a `row_budget` is given, at most that many of their `rows`.
    """
    bins: list[list[int]] = []
    room: list[tuple[int, int]] = []  # (tokens left, bin), sorted, open bins only
    rows_left: list[int] = []
    for index in sorted(indices, key=lambda i: -lengths[i]):
        length = lengths[index]
        position = bisect_left(room, (length, -1))
        if row_budget is not None:
            while position < len(room) and rows_left[room[position][1]] < rows[index]:
                position += 1
        if position < len(room):
            left, bin = room.pop(position)
        else:
            left, bin = budget, len(bins)
            bins.append([])
            rows_left.append(row_budget or 0)
        bins[bin].append(index)
        if row_budget is not None:
            rows_left[bin] -= rows[index]
        if left > length and (max_samples is None or len(bins[bin]) < max_samples):
            insort(room, (left - length, bin))
    return bins


class TokenBudgetBatchSampler(Sampler[list[int]]):
    """One rank's batches of dataset indices, each within a token budget."""

    def __init__(
        self,
        lengths: Sequence[int],
        *,
        budget: int,
        num_epochs: int = 1,
        seed: int = 0,
        rank: int = 0,
        world_size: int = 1,
        planned_ranks: int | None = None,
        max_samples_per_batch: int | None = None,
        rows: Sequence[int] | None = None,
        row_budget: int | None = None,
        shuffle: bool = True,
        names: Sequence[object] | None = None,
    ) -> None:
        # 8 bytes a sample, however many there are
        self.lengths = array("q", lengths)
        self.rows = None if rows is None else array("q", rows)
        self.row_budget = row_budget
        self.budget = budget
        self.num_epochs = num_epochs
        self.seed = seed
        self.rank = rank
        self.world_size = world_size
        self.planned_ranks = world_size if planned_ranks is None else planned_ranks
        self.max_samples_per_batch = max_samples_per_batch
        self.shuffle = shuffle
        self.epoch = 0
        self._check(names)
        most = max(len(self._bins(epoch)) for epoch in range(num_epochs if shuffle else 1))
        self._rounds = math.ceil(most / self.planned_ranks)

    def _check(self, names: Sequence[object] | None) -> None:
        if not self.lengths:
            raise ValueError("there are no samples to make batches of; give a dataset with at least one sample")
        if self.planned_ranks < 1 or self.planned_ranks % self.world_size:
            raise ValueError(
                f"batches planned for {self.planned_ranks} ranks cannot be dealt out to {self.world_size}: the number "
                "of ranks must divide the planned one"
            )
        if self.planned_ranks > len(self.lengths):
            raise ValueError(
                f"{self.planned_ranks} ranks cannot share {len(self.lengths)} samples: every rank needs one of its "
                "own; start fewer processes or give more samples"
            )
        if not 0 <= self.rank < self.world_size:
            raise ValueError(f"rank {self.rank} does not exist among {self.world_size} ranks")
        if self.num_epochs < 1:
            raise ValueError(f"num_epochs must be at least 1, got {self.num_epochs}")
        if self.max_samples_per_batch is not None and self.max_samples_per_batch < 1:
            raise ValueError(f"max_samples_per_batch must be at least 1, got {self.max_samples_per_batch}")
        limits = [("tokens packed (all its sequences)", "budget", "tokens_per_batch", self.lengths, self.budget)]
        if self.row_budget is not None:
            if self.row_budget < 1 or self.rows is None or len(self.rows) != len(self.lengths):
                raise ValueError(f"row_budget={self.row_budget} must be positive and needs rows, one number per sample")
            limits.append(("response rows", "row budget", "rows_per_batch", self.rows, self.row_budget))
        for what, limit, option, sizes, budget in limits:
            largest = max(range(len(sizes)), key=sizes.__getitem__)
            if sizes[largest] > budget:
                name = names[largest] if names is not None else largest
                raise ValueError(
                    f"sample {name!r} takes {sizes[largest]} {what}, more than the {limit} of {budget}; "
                    f"set {option} to at least {sizes[largest]} or shorten it"
                )

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch whose batches the next iteration yields."""
        if self.shuffle and not 0 <= epoch < self.num_epochs:
            raise ValueError(
                f"epoch {epoch} was not planned: batches are counted once, over num_epochs={self.num_epochs} epochs; "
                "construct the sampler with the number of epochs that will run"
            )
        self.epoch = epoch

    def __len__(self) -> int:
        """Batches of this rank, the same for every rank and every epoch."""
        return self._rounds * (self.planned_ranks // self.world_size)

    def __iter__(self) -> Iterator[list[int]]:
        return iter(self.plan(self.epoch)[self.rank])

    def _random(self, epoch: int, purpose: str) -> random.Random:
        # A string seed goes through SHA-512: the same on every machine, and no two epochs or seeds are neighbours.
        return random.Random(f"amopo {purpose} seed={self.seed} epoch={epoch}")

    def _bins(self, epoch: int) -> list[list[int]]:
        order = list(range(len(self.lengths)))
        if self.shuffle:
            self._random(epoch, "samples").shuffle(order)
        bins: list[list[int]] = []
        for start in range(0, len(order), WINDOW):
            window = order[start : start + WINDOW]
            bins += best_fit_decreasing(
                window,
                self.lengths,
                budget=self.budget,
                max_samples=self.max_samples_per_batch,
                rows=self.rows,
                row_budget=self.row_budget,
            )
        return bins

    def plan(self, epoch: int) -> list[list[list[int]]]:
        """The batches of all ranks in one epoch: `plan(epoch)[rank][i]` is a list of indices, ~index for a filler."""
        bins = self._bins(epoch)
        bins, fillers = self._widen(bins, self._rounds * self.planned_ranks)
        # Neighbours after sorting are alike in size: they form a round, one batch per rank.
        bins.sort(key=lambda batch: -sum(self.lengths[i] for i in batch))
        rounds = [bins[i : i + self.planned_ranks] for i in range(0, len(bins), self.planned_ranks)]
        if self.shuffle:
            self._random(epoch, "rounds").shuffle(rounds)
        # Fillers complete the round that is one short, wherever the shuffle has put it.
        for round in rounds:
            while len(round) < self.planned_ranks:
                round.append(fillers.pop())
        return [[batch for round in rounds for batch in round[r :: self.world_size]] for r in range(self.world_size)]

    def _widen(self, bins: list[list[int]], wanted: int) -> tuple[list[list[int]], list[list[int]]]:
        """Split batches of several samples, largest first, until there are `wanted`; then make fillers."""
        number = count()
        heap = [(-len(batch), next(number), batch) for batch in bins]
        heapq.heapify(heap)
        while len(heap) < wanted and -heap[0][0] > 1:
            _, _, batch = heapq.heappop(heap)
            # Members stand longest first: dealing them out in turn halves the tokens too.
            for half in (batch[0::2], batch[1::2]):
                heapq.heappush(heap, (-len(half), next(number), half))
        batches = [batch for _, _, batch in sorted(heap)]
        shortest = min(range(len(self.lengths)), key=self.lengths.__getitem__)
        return batches, [[~shortest] for _ in range(wanted - len(batches))]
