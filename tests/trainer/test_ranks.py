"""With which numbers of ranks and micro-batches a run can go on."""

from types import SimpleNamespace

import pytest

from amopo.trainer.ranks import comparable, ranks_of, ranks_to_plan_for


def arguments(ranks, accumulation):
    return SimpleNamespace(world_size=ranks, gradient_accumulation_steps=accumulation)


def test_a_run_goes_on_with_fewer_ranks_and_as_many_more_micro_batches():
    record = ranks_of(arguments(8, 2))
    assert ranks_to_plan_for(record, arguments(8, 2)) == 8
    narrow = arguments(2, 8)
    assert ranks_to_plan_for(record, narrow) == 8
    again = ranks_of(narrow, 8)
    assert comparable(again) == comparable(record)
    # and from there back, or further down
    assert ranks_to_plan_for(again, arguments(8, 2)) == ranks_to_plan_for(again, arguments(1, 16)) == 8


def test_records_without_a_plan_were_planned_for_their_own_ranks():
    assert ranks_to_plan_for({"world_size": 4, "gradient_accumulation_steps": 3}, arguments(2, 6)) == 4


@pytest.mark.parametrize(
    "ranks, accumulation, message",
    [(3, 2, "number of ranks must divide 4"), (8, 1, "must divide 4"), (2, 2, "set gradient_accumulation_steps=4")],
)
def test_what_would_change_the_steps_is_refused_with_what_to_set(ranks, accumulation, message):
    with pytest.raises(ValueError, match=message):
        ranks_to_plan_for(ranks_of(arguments(4, 2)), arguments(ranks, accumulation))
