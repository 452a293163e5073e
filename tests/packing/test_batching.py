"""Batches hold whole samples within the budget, alike for every rank and epoch, and the same on every run."""

import random

import pytest

from amopo.packing import TokenBudgetBatchSampler
from amopo.packing.batching import best_fit_decreasing


def lognormal_lengths(count, seed=0, largest=1000):
    rng = random.Random(seed)
    return [min(largest, max(1, int(rng.lognormvariate(4.5, 0.8)))) for _ in range(count)]


def real(batches):
    return [index for batch in batches for index in batch if index >= 0]


@pytest.mark.parametrize("world_size", [1, 2, 3])
@pytest.mark.parametrize("limit", [None, 3])
def test_each_epoch_visits_every_sample_once_within_the_budget(world_size, limit):
    lengths = lognormal_lengths(700)
    samplers = [
        TokenBudgetBatchSampler(
            lengths, budget=1000, num_epochs=3, rank=r, world_size=world_size, max_samples_per_batch=limit
        )
        for r in range(world_size)
    ]
    assert len({len(s) for s in samplers}) == 1
    for epoch in range(3):
        seen = []
        for sampler in samplers:
            sampler.set_epoch(epoch)
            batches = list(sampler)
            assert len(batches) == len(sampler)
            assert all(sum(lengths[i] for i in batch) <= 1000 for batch in batches)
            assert all(1 <= len(batch) <= (limit or len(lengths)) for batch in batches)
            seen += real(batches)
        assert sorted(seen) == list(range(700))


def test_epochs_and_seeds_differ_and_repeat_exactly():
    lengths = lognormal_lengths(200)

    def batches(seed, epoch):
        sampler = TokenBudgetBatchSampler(lengths, budget=1000, num_epochs=2, seed=seed)
        sampler.set_epoch(epoch)
        return list(sampler)

    assert batches(1, 0) == batches(1, 0)
    assert batches(1, 1) == batches(1, 1)
    assert batches(1, 0) != batches(1, 1)
    assert batches(1, 0) != batches(2, 0)


def test_iterating_leaves_no_state_behind():
    sampler = TokenBudgetBatchSampler(lognormal_lengths(100), budget=1000, num_epochs=2)
    first = list(sampler)
    next(iter(sampler))
    sampler.set_epoch(1)
    list(sampler)
    sampler.set_epoch(0)
    assert list(sampler) == first


def test_best_fit_fills_the_budget():
    lengths = lognormal_lengths(4096, largest=1000)
    sampler = TokenBudgetBatchSampler(lengths, budget=4096)
    assert sum(lengths) / (4096 * len(sampler)) > 0.96


def test_best_fit_takes_the_fullest_bin_that_has_room():
    # 6, 5 open two bins with 4 and 5 left; 4 fits the first exactly, 3 goes to the second, 3 more opens a third.
    lengths = [3, 4, 5, 6, 3]
    assert best_fit_decreasing(range(5), lengths, budget=10) == [[3, 1], [2, 0], [4]]


def test_epochs_that_need_fewer_batches_are_split_to_the_common_number():
    lengths = lognormal_lengths(600, seed=3)
    sampler = TokenBudgetBatchSampler(lengths, budget=1000, num_epochs=6)
    needed = {len(sampler._bins(epoch)) for epoch in range(6)}
    assert len(needed) > 1, "the case must be one where epochs differ"
    assert len(sampler) == max(needed)
    for epoch in range(6):
        sampler.set_epoch(epoch)
        assert len(list(sampler)) == max(needed)


def test_ranks_of_a_round_carry_similar_loads():
    lengths = lognormal_lengths(2000, seed=1)
    plan = TokenBudgetBatchSampler(lengths, budget=1000, world_size=4).plan(0)
    most = mean = 0
    for round in zip(*plan, strict=True):
        tokens = [sum(lengths[i] for i in batch) for batch in round]
        most += max(tokens)
        mean += sum(tokens) / 4
    assert most / mean < 1.02


def test_a_round_that_no_split_can_fill_gets_fillers_that_repeat_a_sample():
    lengths = [9, 8, 7, 6, 5]  # one sample per batch, five batches, two ranks
    plan = TokenBudgetBatchSampler(lengths, budget=9, world_size=2).plan(0)
    assert [len(rank) for rank in plan] == [3, 3]
    assert sorted(real(plan[0] + plan[1])) == [0, 1, 2, 3, 4]
    assert [batch for rank in plan for batch in rank if batch[0] < 0] == [[~4]]


def test_evaluation_order_needs_no_epoch():
    sampler = TokenBudgetBatchSampler([5, 4, 3], budget=5, shuffle=False)
    assert sorted(real(sampler)) == [0, 1, 2]
    sampler.set_epoch(17)
    assert sorted(real(sampler)) == [0, 1, 2]


def test_bad_input_is_named():
    with pytest.raises(ValueError, match="no samples to make batches of"):
        TokenBudgetBatchSampler([], budget=10)
    with pytest.raises(
        ValueError, match="sample 'long' takes 12 tokens .* budget of 10; set tokens_per_batch to at least 12"
    ):
        TokenBudgetBatchSampler([3, 12], budget=10, names=["short", "long"])
    with pytest.raises(ValueError, match="3 ranks cannot share 2 samples"):
        TokenBudgetBatchSampler([1, 1], budget=10, world_size=3)
    with pytest.raises(ValueError, match="max_samples_per_batch must be at least 1"):
        TokenBudgetBatchSampler([1, 1], budget=10, max_samples_per_batch=0)
    with pytest.raises(ValueError, match="num_epochs must be at least 1"):
        TokenBudgetBatchSampler([1, 1], budget=10, num_epochs=0)
    with pytest.raises(ValueError, match="epoch 2 was not planned"):
        TokenBudgetBatchSampler([1, 1], budget=10, num_epochs=2).set_epoch(2)


@pytest.mark.parametrize("ranks, planned", [(1, 2), (1, 4), (2, 4)])
def test_fewer_ranks_run_through_the_rounds_of_a_plan_for_more(ranks, planned):
    lengths = [3 + i % 7 for i in range(23)]
    options = {"budget": 12, "num_epochs": 2, "seed": 5}
    wide = TokenBudgetBatchSampler(lengths, world_size=planned, **options).plan(1)
    narrow = TokenBudgetBatchSampler(lengths, world_size=ranks, planned_ranks=planned, **options)
    turns = planned // ranks
    assert len(narrow) == turns * len(wide[0])
    for number in range(len(wide[0])):
        expected = sorted(tuple(rank[number]) for rank in wide)
        found = [tuple(b) for rank in narrow.plan(1) for b in rank[number * turns : (number + 1) * turns]]
        assert sorted(found) == expected


def test_a_plan_that_cannot_be_dealt_out_is_refused():
    with pytest.raises(ValueError, match="planned for 3 ranks cannot be dealt out to 2"):
        TokenBudgetBatchSampler([4] * 9, budget=8, world_size=2, planned_ranks=3)
