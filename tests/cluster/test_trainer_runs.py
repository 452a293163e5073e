"""AMoPOTrainer on two ranks under each engine trains, evaluates, saves and resumes as one process does."""

from __future__ import annotations

import json

import pytest
import torch
import trainer_runs
from launch import needs_deepspeed, run_ranks

pytestmark = [pytest.mark.distributed, pytest.mark.timeout(600)]

TORCH_ENGINES = ("ddp", "fsdp2", "fsdp2-sharded")
ZERO_ENGINES = ("zero2", "zero3")
LIMIT = 500


@pytest.fixture(scope="module")
def single(tmp_path_factory):
    directory = tmp_path_factory.mktemp("single")
    trainer_runs.run("train", "single", directory, accumulation=6)
    return read(directory, "train-single")


@pytest.fixture(scope="module")
def torch_runs(tmp_path_factory):
    directory = tmp_path_factory.mktemp("torch")
    tasks = [f"train:{engine}" for engine in TORCH_ENGINES]
    run_ranks("trainer_runs.py", directory, *tasks, "resume:fsdp2", "resume:fsdp2-sharded", timeout=LIMIT)
    return directory


@pytest.fixture(scope="module")
def zero_runs(tmp_path_factory):
    directory = tmp_path_factory.mktemp("zero")
    run_ranks("trainer_runs.py", directory, *(f"train:{e}" for e in ZERO_ENGINES), "resume:zero3", timeout=LIMIT)
    return directory


def read(directory, name):
    logs = json.loads((directory / f"{name}.json").read_text())
    return logs | {"weights": torch.load(directory / f"{name}.pt", weights_only=True)}


def check(got, expected, *, since=0):
    """Weights to 1e-5; every logged number and evaluation to the rounding of its size."""
    assert got["steps"] == expected["steps"] == trainer_runs.STEPS
    assert set(got["weights"]) == set(expected["weights"])
    for name, value in expected["weights"].items():
        difference = float((got["weights"][name] - value).abs().max())
        assert difference <= 1e-5, f"{name}: {difference}"
    wanted = [entry for entry in expected["history"] if "loss" in entry and entry["step"] > since]
    history = [entry for entry in got["history"] if "loss" in entry and entry["step"] > since]
    assert len(history) == len(wanted) == trainer_runs.STEPS - since
    for entry, other in zip(history, wanted, strict=True):
        own = ("tokens_per_second", "amopo/fill", "amopo/peak_memory_gib")
        names = [name for name in other if not name.endswith(own)]
        assert "rewards/margins" in names and "grad_norm" in names
        for name in names:
            assert entry[name] == pytest.approx(other[name], rel=1e-4, abs=1e-5), name
    for name, value in expected["evaluated"].items():
        if name not in ("eval_runtime", "eval_samples_per_second"):
            assert got["evaluated"][name] == pytest.approx(value, rel=1e-4, abs=1e-5), name


@pytest.mark.parametrize("engine", TORCH_ENGINES)
def test_a_run_on_two_ranks_is_that_of_one_process(engine, torch_runs, single):
    check(read(torch_runs, f"train-{engine}"), single)


@pytest.mark.parametrize("engine", ["fsdp2", "fsdp2-sharded"])
def test_a_resumed_run_under_fsdp2_ends_as_one_that_was_not_interrupted(engine, torch_runs, single):
    check(read(torch_runs, f"resume-{engine}"), single, since=trainer_runs.SAVED)


@pytest.mark.parametrize("engine", ["fsdp2", "fsdp2-sharded"])
def test_one_process_goes_on_with_what_two_ranks_saved_under_fsdp2(engine, torch_runs, single, tmp_path):
    (tmp_path / "single").symlink_to(torch_runs / engine)
    trainer_runs.run("resume-on-one", "single", tmp_path, accumulation=6)
    check(read(tmp_path, "resume-on-one-single"), single, since=trainer_runs.SAVED)


def test_another_number_of_ranks_needs_as_many_micro_batches_per_step(torch_runs, tmp_path):
    (tmp_path / "single").symlink_to(torch_runs / "fsdp2")
    with pytest.raises(ValueError, match="on 1 ranks with gradient_accumulation_steps=3.*set gradient_accum.*=6"):
        trainer_runs.run("resume", "single", tmp_path)


def test_an_engine_that_accelerate_would_leave_out_is_refused(monkeypatch, tmp_path):
    """On CPUs accelerate takes DDP where FSDP was asked for, and says nothing."""
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    try:
        with pytest.raises(ValueError, match="FSDP was asked for, but accelerate would run NO on this cpu"):
            trainer_runs.make(tmp_path, "single")
    finally:
        trainer_runs.forget()


@needs_deepspeed
@pytest.mark.parametrize("engine", ZERO_ENGINES)
def test_a_run_on_two_ranks_is_that_of_one_process_under_zero(engine, zero_runs, single):
    check(read(zero_runs, f"train-{engine}"), single)


@needs_deepspeed
def test_a_resumed_run_under_zero3_ends_as_one_that_was_not_interrupted(zero_runs, single):
    check(read(zero_runs, "resume-zero3"), single, since=trainer_runs.SAVED)


@needs_deepspeed
def test_one_rank_goes_on_with_what_two_saved_under_zero3(zero_runs, single):
    run_ranks("trainer_runs.py", zero_runs, "resume-on-one:zero3", ranks=1, timeout=LIMIT)
    check(read(zero_runs, "resume-on-one-zero3"), single, since=trainer_runs.SAVED)
