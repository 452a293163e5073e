"""The plan for ZeRO-3, with and without offloading, against tensor bytes of real steps on two ranks.

Two things are a CPU's own and are not in a plan for a GPU. What is offloaded lands in the same memory: the worker
counts the tensors that would stand on the host, and they are compared with the plan's host memory. And gloo reduces a
copy of the gradients, which the plan counts with `device="cpu"`.
"""

from __future__ import annotations

import json

import pytest
import zero_memory_cases as cases
from launch import needs_deepspeed, run_ranks

from amopo.memory import zero3
from amopo.memory.plan import make_plan

pytestmark = [pytest.mark.distributed, pytest.mark.timeout(300), needs_deepspeed]

RUNS = (
    "parameters:none", "parameters:optimizer", "parameters:all", "parameters-short:none",
    "parameters-checkpointed:none", "parameters-tied:none", "activations:none", "activations-checkpointed:none",
)  # fmt: skip
ALLOWED = 0.05
# The head's plan holds fp32 copies of a block of logits on a CPU in bf16, which C++ goes without.
BLOCK = 8 << 20


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("memory")
    run_ranks("zero_memory.py", folder, *RUNS, ranks=cases.RANKS, timeout=240)
    return folder


@pytest.fixture
def compared(folder, monkeypatch):
    """(plan, what each rank measured) of a run."""

    def compare(run):
        name, offload = run.split(":")
        shape, sample, checkpointing, limits = cases.CASES[name]
        if limits is not None:
            monkeypatch.setattr(zero3, "MAX_LIVE", limits)
            monkeypatch.setattr(zero3, "MAX_REUSE", limits)
        plan = make_plan(shape, sample, cases.settings_of(offload, checkpointing), observed=True)
        files = [folder / f"{name}-{offload}-{rank}.json" for rank in range(cases.RANKS)]
        return plan, [json.loads(file.read_text()) for file in files]

    return compare


@pytest.mark.parametrize("run", RUNS)
def test_states_of_a_rank_are_those_of_the_plan(run, compared):
    plan, ranks = compared(run)
    step = plan.phases["step"]
    for rank in ranks:
        states = rank["states"]
        assert plan.host == pytest.approx(states["host"], rel=ALLOWED, abs=0)
        here = {"parameters": "partitions", "gradients": "gradients", "optimizer": "optimizer"}
        if plan.settings.offload != "none":
            assert step["gradients"] == step["optimizer"] == 0
            here = {} if plan.settings.offload == "all" else {"parameters": "partitions"}
        for planned, kind in here.items():
            assert step[planned] == pytest.approx(states[kind], rel=ALLOWED), kind
        # and there is nothing else between steps
        assert states["all"] == pytest.approx(rank["live"], rel=0.01)


@pytest.mark.parametrize("run", RUNS)
def test_peaks_of_a_rank_are_those_of_the_plan(run, compared):
    plan, ranks = compared(run)
    for rank in ranks:
        here = {phase: peak - rank["states"]["host"] for phase, peak in rank["peaks"].items()}
        phases = ["forward", "backward", "step"] + (["load"] if plan.settings.offload == "none" else [])
        for phase in phases:
            assert plan.total(phase) == pytest.approx(here[phase], rel=ALLOWED), phase
        assert here["head"] * (1 - ALLOWED) <= plan.total("head") <= here["head"] * (1 + ALLOWED) + BLOCK


def test_the_plan_is_told_by_what_is_gathered(compared):
    """Limits on gathered weights that were passed by would show: the two runs differ in nothing else."""
    (far, _), (short, _) = compared("parameters:none"), compared("parameters-short:none")
    assert short.total("forward") < 0.9 * far.total("forward")


def test_no_weight_is_gathered_for_the_whole_step(compared):
    """A look at a weight from outside of its module makes DeepSpeed gather it with the module that looked."""
    for run in RUNS:
        assert all(rank["external"] == 0 for rank in compared(run)[1])
