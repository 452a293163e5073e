"""The plan for ZeRO-3 (offloading, adapters, accumulation) against tensor bytes of real steps on two ranks.

Two things are a CPU's own and are not in a plan for a GPU. What is offloaded lands in the same memory: the worker
counts the tensors that would stand on the host, and they are compared with the plan's host memory. And gloo reduces a
copy of the gradients, which the plan counts with `device="cpu"`.
"""

from __future__ import annotations

import pytest
import rank_memory_cases as cases
from launch import needs_deepspeed, run_ranks
from rank_memory_judge import assert_peaks, assert_states, measured

pytestmark = [pytest.mark.distributed, pytest.mark.timeout(1600), needs_deepspeed]

RUNS = (
    "parameters:none", "parameters:optimizer", "parameters:all", "parameters-short:none",
    "parameters-checkpointed:none", "parameters-tied:none", "parameters-twice:optimizer", "activations:none",
    "activations-checkpointed:none", "adapters:all", "adapters-short:none", "adapters-twice:none",
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


def test_the_plan_is_told_by_what_is_gathered():
    """Limits on gathered weights that were passed by would show: the two runs differ in nothing else."""
    far, short = cases.plan_of("parameters:none"), cases.plan_of("parameters-short:none")
    assert short.total("forward") < 0.9 * far.total("forward")


def test_no_weight_is_gathered_for_the_whole_step(folder):
    """A look at a weight from outside of its module makes DeepSpeed gather it with the module that looked."""
    for run in RUNS:
        assert all(rank["external"] == 0 for rank in measured(folder, run))
