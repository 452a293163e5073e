"""The benchmark of whole models' memory: settings by plan, the search, and its methods on a tiny model."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from amopo.memory.methods import plan_method
from amopo.memory.workload import fill
from bench.common.largest import search
from bench.common.memory_cases import GIB, MEMORY_CASES, memory_cases_with
from bench.common.memory_steps import METHODS, padded_loss

H200 = 139 * GIB


@pytest.mark.parametrize("limit", [1, 2, 3, 7, 40, 1000])
@pytest.mark.parametrize("start", [0, 1, 5, 64])
def test_the_search_ends_at_the_largest_size_that_holds(limit, start):
    found = search(lambda size: size <= limit, start)
    assert found.finished and found.held <= limit < found.failed
    assert found.failed - found.held <= max(1, found.held // 16) and len(found.tries) < 24


def test_a_search_where_nothing_holds_ends_at_none():
    found = search(lambda size: False, 8)
    assert (found.held, found.failed, found.finished) == (0, 1, True)


def test_a_search_that_runs_out_of_time_keeps_its_bracket():
    clock = iter(range(100))
    found = search(lambda size: size <= 20, 4, seconds=4.5, clock=lambda: next(clock))
    assert not found.finished and (found.held, found.failed) == (16, 32)


def test_models_on_a_large_card_have_settings_that_fit_by_the_plan():
    for case in MEMORY_CASES["cuda"]:
        settings = case.settings(H200)
        peak = plan_method("amopo pair", case.shape, fill(case.sample, case.tokens[-1]), settings).peak
        assert peak <= H200, case
        if settings != case.choices[0]:  # and what is more comfortable does not
            peak = plan_method("amopo pair", case.shape, fill(case.sample, case.tokens[-1]), case.choices[0]).peak
            assert peak > H200, case


def test_all_weights_of_7b_are_trained_with_checkpointing():
    assert [case.settings(H200).checkpointing for case in memory_cases_with(["7b-full"], "cuda")] == [True, True]


def test_stored_logits_run_out_of_the_card_before_the_largest_row_at_32b():
    case = memory_cases_with(["32b"], "cuda")[0]
    sample = fill(case.sample, case.tokens[-1])
    peaks = {method: plan_method(method, case.shape, sample, case.settings(H200)).peak for method in METHODS}
    assert peaks["released"] > H200 and all(peaks[name] < H200 for name in METHODS if name.startswith("amopo"))


@pytest.mark.parametrize("released", [False, True])
def test_the_padded_loss_is_that_of_the_margins(released):
    """B = 2, K = 2; rows by objective, then chosen | rejected, then sample."""
    torch.manual_seed(0)
    logits, labels = torch.randn(8, 5, 11), torch.randint(0, 11, (8, 5))
    labels[:, :2] = -100
    labels[3, 4] = -100
    means = []
    for row in range(8):
        picked = [
            logits[row, t - 1].double().log_softmax(-1)[labels[row, t]] for t in range(1, 5) if labels[row, t] >= 0
        ]
        means.append(torch.stack(picked).mean())
    margins = [means[4 * k + b] - means[4 * k + 2 + b] for k in range(2) for b in range(2)]
    expected = torch.stack([-(0.8 * margin).sigmoid().log() for margin in margins]).mean()
    assert padded_loss(logits, labels, 2, released=released).item() == pytest.approx(expected.item(), rel=1e-5)


@pytest.fixture(scope="module")
def tiny():
    pytest.importorskip("transformers")
    from bench.common.memory_steps import MemorySteps

    case = next(case for case in MEMORY_CASES["small"] if case.name == "tiny-full")
    case = dataclasses.replace(case, shape=dataclasses.replace(case.shape, layers=2))
    return MemorySteps(case, case.choices[0], torch.device("cpu"), case.card)


@pytest.mark.parametrize("method", METHODS)
def test_the_plan_of_each_method_is_within_five_per_cent_of_its_tensors(tiny, method):
    sample = fill(tiny.case.sample, tiny.case.tokens[0])
    measured = max(tiny.peaks(method, sample).values())
    planned = plan_method(method, tiny.case.shape, sample, tiny.settings, observed=True).peak
    assert planned == pytest.approx(measured, rel=0.05)


@pytest.mark.parametrize(
    "words", ["CUDA error: out of memory", "Triton Error [CUDA]: out of memory", "CUBLAS_STATUS_ALLOC_FAILED"]
)
def test_a_search_takes_any_error_of_a_full_card_for_an_answer(words):
    from bench.test_memory import attempt

    class Full:
        recovered = 0

        def peaks(self, method, sample):
            raise RuntimeError(words)

        def recover(self):
            self.recovered += 1

    steps = Full()
    assert attempt(steps, "amopo pair", None) is None and steps.recovered == 1
    words = "a bug"
    with pytest.raises(RuntimeError, match="a bug"):
        attempt(steps, "amopo pair", None)


def test_a_step_beyond_the_card_is_out_of_memory_and_the_next_one_runs(tiny, monkeypatch):
    monkeypatch.setattr(tiny, "card", 1 << 20)
    with pytest.raises(torch.OutOfMemoryError, match="on a card of 1048576"):
        tiny.peaks("amopo pair", tiny.case.sample)
    tiny.recover()
    assert all(parameter.grad is None for parameter in tiny.model.parameters())
    assert tiny.seconds("amopo pair", tiny.case.sample) > 0
