"""What does a training step of a whole model take, does the plan say so, and which budget can each method hold?

Random weights of Qwen2.5's shapes (`bench.common.memory_cases`): 7B with all weights trained, 14B and 32B with LoRA and
checkpointing; K = 4, rows of 4k to 32k tokens of `amopo pair`. Each method runs the samples of that row
(`bench.common.memory_steps`); one that runs out of memory is out of the larger rows, and the results say at which.

    test_model      peaks by phase (`amopo.memory.track`), the plan of the same step beside them, tokens and samples per
                    second. More than 5 % between plan and measurement of ours (on a CPU: of any method) fails.
    test_largest    the most samples in a row that each method holds, by doubling and bisection, and the plan's answer.

Without a GPU a tiny model runs in both, on a card whose size is made up, with bytes of tensors instead of CUDA's
allocator. The head alone, within its byte budget, stands in `bench/test_memory_head.py`.
"""

from __future__ import annotations

import dataclasses
import importlib.util
import time

import pytest
import torch

from amopo.memory.advice import largest_samples
from amopo.memory.exhausted import is_out_of_memory
from amopo.memory.methods import plan_method
from amopo.memory.workload import fill, row_of
from bench.common.largest import search
from bench.common.measure import REPLAY, Entrant, message_of
from bench.common.memory_cases import describe
from bench.common.memory_steps import METHODS, MemorySteps
from bench.common.replay import replay

QUESTION, LARGEST = "memory_model", "memory_largest"
AGREE = 0.05
ENOUGH_SECONDS = {QUESTION: 420.0, LARGEST: 130.0}  # of a case, and of one method's search
MODEL = pytest.StashKey[tuple[object, MemorySteps]]()


def why_missing(case) -> str | None:
    needed = ["transformers", *(["peft"] if case.choices[0].lora is not None else [])]
    absent = [name for name in needed if importlib.util.find_spec(name) is None]
    return f"{', '.join(absent)} is not installed" if absent else None


@pytest.fixture(scope="module", autouse=True)
def release_the_last_model(request):
    yield
    _, steps = request.config.stash.get(MODEL, (None, None))
    request.config.stash[MODEL] = (None, None)
    if steps is not None:
        steps.close()


@pytest.fixture
def steps_of(bench_session, request):
    """case -> its model on the device; one case's at a time, since two do not fit."""
    stash = request.config.stash

    def make(case) -> MemorySteps:
        kept, steps = stash.get(MODEL, (None, None))
        if kept != case:
            if steps is not None:
                steps.close()
            stash[MODEL] = (None, None)
            card = case.card_bytes(bench_session.device)
            steps = MemorySteps(case, case.settings(card), bench_session.device, card)
            stash[MODEL] = (case, steps)
        return steps

    return make


def beside(steps: MemorySteps, case) -> dict:
    """What stands with every record of a case."""
    allocated = {}
    if steps.device.type == "cuda":
        free, total = torch.cuda.mem_get_info(steps.device)
        allocated = {"outside_of_allocator_bytes": total - free - torch.cuda.memory_reserved(steps.device)}
    return {
        "parameters": case.shape.parameters, "settings": describe(steps.settings), "card_bytes": steps.card, **allocated
    }  # fmt: skip


def attempt(steps: MemorySteps, method: str, sample) -> dict[str, int] | None:
    """The peaks of a step; None where memory ran out."""
    try:
        return steps.peaks(method, sample)
    except RuntimeError as error:
        if not is_out_of_memory(error):
            raise
    steps.recover()  # outside the handler: the exception holds the frames of the call
    return None


def _race(session, case, steps):
    """{(budget, method): Entrant}, the smallest row first; what is measured is written at once."""
    entrants, reasons, started = {}, {}, time.monotonic()
    for budget in case.tokens:
        sample = fill(case.sample, budget)
        for method in METHODS:
            entrant = entrants[budget, method] = Entrant(method, None)
            if method not in reasons and time.monotonic() - started > ENOUGH_SECONDS[QUESTION]:
                reasons[method] = f"no time was left at {budget} tokens"
            info = {}
            entrant.problem = reasons.get(method)
            if entrant.problem is None:
                try:
                    info = _measure(steps, case, method, sample)
                    if info is None:
                        reasons[method] = f"out of memory at {sample.samples} samples"
                    else:
                        entrant.times.append(steps.seconds(method, sample))
                        info["tokens_per_second"] = info["tokens"] / entrant.times[0]
                        info["samples_per_second"] = sample.samples / entrant.times[0]
                except Exception as error:
                    # the blocks of the measured step may stand in the way of the next
                    full = is_out_of_memory(error)
                    at = f"out of memory at {sample.samples} samples, in the second step"
                    reasons[method] = at if full else f"failed: {message_of(error)}"
                entrant.problem = reasons.get(method)
                if entrant.problem is not None:
                    steps.recover()
            key = {"shape": str(case), "budget": budget, "samples": sample.samples, "provider": method}
            key["small"] = not session.full
            session.record(QUESTION, key, entrant, info or {})
    return entrants


def _measure(steps, case, method, sample) -> dict | None:
    peaks = attempt(steps, method, sample)
    if peaks is None:
        return None
    plan = plan_method(method, case.shape, sample, steps.settings, observed=True)
    measured = max(peaks.values())
    # log-probs from stored logits have no phase of their own: the head stands in forward and backward
    planned = {phase: plan.total(phase) for phase in peaks} if "head" in peaks else {}
    return {
        "role": "ours" if method.startswith("amopo") else "peer", "tokens": plan.row.tokens, "peak_bytes": measured,
        "planned_bytes": plan.peak, "planned_over_measured": plan.peak / measured,
        "phases": peaks, "planned_phases": planned, **beside(steps, case),
    }  # fmt: skip


@pytest.mark.benchmark(timer=REPLAY)
@pytest.mark.parametrize("method", METHODS)
def test_model(benchmark, bench_session, steps_of, memory_row, method):
    case, budget = memory_row
    if (reason := why_missing(case)) is not None:
        pytest.skip(reason)
    entrants = bench_session.race((QUESTION, case), lambda: _race(bench_session, case, steps_of(case)))
    found = entrants[budget, method]
    if found.problem is not None and not found.problem.startswith("failed"):
        pytest.skip(f"{method}: {found.problem}")  # a result, not a fault
    benchmark.group = f"{QUESTION} {case}, {budget} tokens"
    replay(benchmark, found)
    # A CPU's tracker sees every tensor of the others too; what CUDA's kernels of theirs take inside is not planned.
    if method.startswith("amopo") or bench_session.device.type == "cpu":
        assert abs(found.extra["planned_over_measured"] - 1) <= AGREE, found.extra


@pytest.mark.parametrize("method", METHODS)
def test_largest(bench_session, steps_of, searched_case, method):
    if (reason := why_missing(searched_case)) is not None:
        pytest.skip(reason)
    steps, case, entrant = steps_of(searched_case), searched_case, Entrant(method, None)

    def sized(samples: int):
        return dataclasses.replace(case.sample, samples=samples)

    def holds(samples: int) -> bool:
        begin = time.perf_counter()
        fits = attempt(steps, method, sized(samples)) is not None
        if fits:
            entrant.times.append(time.perf_counter() - begin)
        return fits

    planned = largest_samples(case.shape, case.sample, steps.settings, limit=steps.card, method=method)
    # from a quarter of the plan's answer: what runs far below it only takes time
    found = search(holds, planned // 4, seconds=ENOUGH_SECONDS[LARGEST])

    def tokens(samples: int | None) -> int | None:
        return plan_method(method, case.shape, sized(samples), steps.settings).row.tokens if samples else samples

    info = {
        "largest_samples": found.held, "largest_tokens": tokens(found.held), "failed_samples": found.failed,
        "failed_tokens": tokens(found.failed), "finished": found.finished, "tries": found.tries,
        "planned_samples": planned, "planned_tokens": tokens(planned),
        "pair_tokens": row_of(dataclasses.replace(sized(found.held or 1), sharing="pair")).tokens if found.held else 0,
        **beside(steps, case),
    }  # fmt: skip
    if not entrant.times:
        entrant.problem = "out of memory at one sample"
    key = {"shape": str(case), "provider": method, "small": not bench_session.full}
    bench_session.record(LARGEST, key, entrant, info)
    assert found.failed is None or found.held < found.failed
    if bench_session.device.type == "cpu" and method.startswith("amopo"):  # no allocator, so nothing is fragmented
        assert found.finished and found.held <= 1.1 * planned and found.failed >= 0.9 * planned, info
