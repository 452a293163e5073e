"""Three steps of a plain loop on two ranks are those of one process: losses, weights alpha, gradients, weights."""

from __future__ import annotations

import pytest
import steps
import torch
from launch import needs_deepspeed, run_ranks

pytestmark = [pytest.mark.distributed, pytest.mark.timeout(1600)]
LIMIT = 1500  # seconds; about 30 on two free cores

TORCH_ENGINES = ("ddp", "fsdp2", "fsdp2-tail", "fsdp2-own", "accelerate-ddp", "accelerate-fsdp2")
ZERO_ENGINES = ("zero2", "zero3")


def cases(engines):
    kinds = [(tied, accumulation) for tied in (True, False) for accumulation in (1, 2)]
    made = [steps.Case(engine, *kind) for engine in engines for kind in kinds]
    # FSDP2 refuses a weight that two units share; the tail unit is how tied heads are sharded.
    return [case for case in made if not (case.engine == "fsdp2-own" and case.tied)]


def variants(engines, tied=()):
    """Adapters and padded rows on an untied head, and on a tied one under the engines of `tied`."""
    kinds = (*steps.ADAPTERS, "padded")
    made = [steps.Case(engine, False, 2, kind) for engine in engines for kind in kinds]
    return made + [steps.Case(engine, True, 2, kind) for engine in tied for kind in ("lora-head", "padded")]


TORCH_CASES = cases(TORCH_ENGINES) + variants(TORCH_ENGINES[:4], tied=("ddp", "fsdp2-tail"))
TORCH_CASES += [steps.Case("accelerate-fsdp2", False, 2, kind) for kind in ("lora-head", "whole-head")]
# Variants of the same code in DeepSpeed: one case each.
ZERO_VARIANTS = (
    "zero1,untied,1",
    "zero2,untied,2,whole-head",
    "zero2,untied,2,padded",
    "zero3-offload,untied,2",
    "accelerate-zero2,untied,2",
    "accelerate-zero3,tied,2",
    "accelerate-zero3,untied,2,lora-head",
)
ZERO_CASES = cases(ZERO_ENGINES) + [steps.Case.parse(text) for text in ZERO_VARIANTS]
ZERO_CASES += variants(("zero3",), tied=("zero3",))


@pytest.fixture(scope="module")
def torch_runs(tmp_path_factory):
    directory = tmp_path_factory.mktemp("torch")
    run_ranks("steps.py", directory, *TORCH_CASES, timeout=LIMIT)
    return directory


@pytest.fixture(scope="module")
def zero_runs(tmp_path_factory):
    directory = tmp_path_factory.mktemp("zero")
    run_ranks("steps.py", directory, *ZERO_CASES, timeout=LIMIT)
    return directory


@pytest.fixture(scope="module")
def single_runs():
    made = {}

    def get(case):
        key = steps.Case("single", case.tied, case.accumulation, case.variant)
        if key not in made:
            made[key] = steps.train(key, None, 1)
        return made[key]

    return get


def check(case, directory, expected):
    ranks = [torch.load(directory / f"{case}-{rank}.pt") for rank in range(2)]
    assert len(expected) == steps.STEPS
    for number, wanted in enumerate(expected):
        got = [rank[number] for rank in ranks]
        alphas = got[0]["alphas"] | got[1]["alphas"]
        assert set(alphas) == set(wanted["alphas"]) and len(got[0]["alphas"]) != len(got[1]["alphas"])
        for name, alpha in wanted["alphas"].items():
            torch.testing.assert_close(alphas[name], alpha, rtol=1e-5, atol=1e-6)
        for rank in got:
            torch.testing.assert_close(rank["loss"], wanted["loss"], rtol=1e-5, atol=1e-6)
            for kind in ("gradients", "weights"):
                assert set(rank[kind]) == set(wanted[kind])
                for name, value in wanted[kind].items():
                    difference = float((rank[kind][name] - value).abs().max())
                    assert difference <= 1e-5, f"step {number}, {kind} of {name}: {difference}"


@pytest.mark.parametrize("case", TORCH_CASES, ids=str)
def test_two_ranks_train_as_one_process_does(case, torch_runs, single_runs):
    check(case, torch_runs, single_runs(case))


@needs_deepspeed
@pytest.mark.parametrize("case", ZERO_CASES, ids=str)
def test_two_ranks_train_as_one_process_does_under_zero(case, zero_runs, single_runs):
    check(case, zero_runs, single_runs(case))


def test_steps_are_large_enough_to_tell_apart(single_runs):
    """What the tolerances above must resolve: gradients, and the difference that unequal counts make."""
    for variant in ("plain", *steps.ADAPTERS, "padded"):
        run = single_runs(steps.Case("single", False, 2, variant))
        trained = run[0]["gradients"].keys()
        for step in run:
            assert all(float(gradient.abs().max()) > 1e-3 for gradient in step["gradients"].values())
        for name, weight in run[0]["weights"].items():
            change = float((weight - run[2]["weights"][name]).abs().max())
            assert change > 1e-3 if name in trained else change == 0.0, (variant, name)
        on_head = [name for name in trained if "lm_head" in name]
        assert len(on_head) == {"lora-body": 0, "lora-head": 2}.get(variant, 1), "what trains of the head"
