"""The plan for DDP and FSDP2 against tensor bytes of real steps on two CPU ranks: accumulation, offloading, adapters.

What FSDP2 offloads is told apart by its copies, which the worker makes as a GPU would need them: peaks are those of
what would stand on the GPU.
"""

from __future__ import annotations

import pytest
import rank_memory_cases as cases
from launch import run_ranks
from rank_memory_judge import assert_peaks, assert_states, measured

pytest.importorskip("transformers")
pytest.importorskip("peft")

pytestmark = [pytest.mark.distributed, pytest.mark.timeout(1600)]

RUNS = (
    "ddp-twice:none", "ddp-adapters-twice:none", "fsdp2:none", "fsdp2:all", "fsdp2-tied-twice:none",
    "fsdp2-tied-twice:all", "fsdp2-adapters-twice:all",
)  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("memory")
    run_ranks("rank_memory.py", folder, *RUNS, ranks=cases.RANKS, timeout=1500)
    return folder


@pytest.mark.parametrize("run", RUNS)
def test_states_of_a_rank_are_those_of_the_plan(run, folder):
    assert_states(folder, run)


@pytest.mark.parametrize("run", RUNS)
def test_peaks_of_a_rank_are_those_of_the_plan(run, folder):
    assert_peaks(folder, run)


def test_gradients_of_earlier_micro_batches_stand_from_the_beginning_of_the_forward(folder):
    """By their own bytes: a forward without them would be the smaller by all gradients of the rank."""
    for rank in measured(folder, "fsdp2-tied-twice:none"):
        plan = cases.plan_of("fsdp2-tied-twice:none")
        assert plan.phases["forward"]["gradients"] >= rank["states"]["gradients"]
        assert rank["peaks"]["forward"] > rank["live"]
