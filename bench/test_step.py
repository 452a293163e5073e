"""Whole training steps on a GPU: samples per second, and the largest batch before memory runs out.

Forward and backward in bf16 with gradient checkpointing and random weights, no optimizer, K = 4 objectives, over
micro-batches of B = 1, 2, 4, ... samples (`bench.common.synthetic`: real lengths, random tokens). A provider that runs
out of memory at some B is out of the larger ones; what it said stands in the results.

    amopo_none, amopo_pair   one packed row, AMoPO's loss
    released                 the released AMoPO step: 2K padded rows per sample, stored fp32 logits
    trl_simpo                TRL's CPO trainer with its SimPO loss: one padded pair per objective, stored logits

Before anything is timed, log-probs of one sample must agree.
"""

from __future__ import annotations

import gc
import importlib.util

import pytest
import torch

from amopo.fused_loss import loss_from_logps
from amopo.memory.exhausted import is_out_of_memory
from amopo.packing import pack
from bench.common.measure import REPLAY, Entrant, message_of, race, release_memory, run_for_memory
from bench.common.released_step import padded_rows, released_loss
from bench.common.replay import replay
from bench.common.step_models import StepShape, make_model
from bench.common.synthetic import make_samples
from bench.common.trl_step import TrlStep

pytestmark = pytest.mark.benchmark(timer=REPLAY)
QUESTION = "step"
PROVIDERS = ("amopo_pair", "amopo_none", "released", "trl_simpo")
SIZES = {"small": (1, 2), "full": (1, 2, 4, 8, 16, 32, 64)}
OUT_OF_MEMORY = "out of memory"
# Relative difference of summed log-probs that the dtype's rounding through a deep model explains.
ALLOWED = {torch.float32: 1e-4, torch.bfloat16: 3e-2}


class Steps:
    """The model, and one function per provider: samples -> summed log-probs [B, K, 2] or TRL's mean ones."""

    def __init__(self, shape: StepShape, device: torch.device, dtype: torch.dtype) -> None:
        from amopo.trainer.forward import patch_forward

        self.model, self.trained = make_model(shape, device, dtype)
        patch_forward(self.model)
        self.device, self._trl = device, None

    def amopo(self, samples, sharing):
        batch = pack(samples, sharing=sharing)
        layout = batch.layout.to(self.device)
        ids, positions = (part.to(self.device) for part in (batch.input_ids, batch.position_ids))
        logps = self.model(input_ids=ids, position_ids=positions, amopo_layout=layout)
        result = loss_from_logps(logps, layout, step=0, sample_ids=batch.sample_ids.to(self.device))
        result.loss.backward()
        return result.sum_logps.detach()

    def released(self, samples):
        loss, sums = released_loss(self.model, samples, torch.zeros(len(samples), samples[0].num_objectives, 2))
        loss.backward()
        return sums.detach()

    def trl(self, samples):
        if self._trl is None:
            bf16 = next(self.model.parameters()).dtype == torch.bfloat16
            self._trl = TrlStep(self.model, bf16=bf16)
        loss, metrics = self._trl.loss(samples)
        loss.backward()
        return metrics

    def function(self, provider, samples):
        def run():
            self.model.zero_grad(set_to_none=True)
            if provider.startswith("amopo"):
                return self.amopo(samples, provider.removeprefix("amopo_"))
            return self.released(samples) if provider == "released" else self.trl(samples)

        return run


def sizes_of(session) -> tuple[int, ...]:
    return SIZES["full" if session.full else "small"]


def why_missing(provider: str) -> str | None:
    if provider != "trl_simpo":
        return None
    absent = [name for name in ("trl", "datasets", "accelerate") if importlib.util.find_spec(name) is None]
    return f"{', '.join(absent)} is not installed" if absent else None


def tokens_of(provider: str, samples) -> int:
    if provider.startswith("amopo"):
        return pack(samples, sharing=provider.removeprefix("amopo_")).layout.num_tokens
    return padded_rows(samples)[0].numel()


def check_same_task(steps: Steps, samples, providers, dtype) -> dict[str, float]:
    """Relative differences of log-probs to those of `amopo_none`; raises where rounding does not explain them."""
    exact = steps.function("amopo_none", samples)()
    differences = {}
    for provider in providers:
        got = steps.function(provider, samples)()
        if provider == "trl_simpo":  # it tells means over pairs of mean log-probs only
            lengths = torch.tensor([len(samples[0].chosen), len(samples[0].rejected)], device=exact.device)
            right = (exact / lengths).mean((0, 1))
            got = torch.tensor([got["logps/chosen"], got["logps/rejected"]], device=exact.device)
            difference = ((got - right) / right).abs().max().item()
        else:
            difference = ((got - exact) / exact).abs().max().item()
        assert difference < ALLOWED[dtype], f"{provider}: log-probs differ by {difference:.1e} relative"
        differences[provider] = difference
    return differences


def _race(session, shape):
    dtype = session.dtype if session.device.type == "cuda" else torch.float32
    steps = Steps(shape, session.device, dtype)
    sizes = sizes_of(session)
    samples = make_samples(max(sizes), vocab=shape.vocab, shrink=1 if session.full else 16)
    reasons = {provider: why_missing(provider) for provider in PROVIDERS}
    alive = [provider for provider in PROVIDERS if reasons[provider] is None]
    differences = check_same_task(steps, samples[:1], alive, dtype)
    entrants = {}
    for size in sizes:
        infos = {}
        for provider in PROVIDERS:
            entrant = entrants[size, provider] = Entrant(provider, None)
            if provider not in alive:
                entrant.problem = reasons[provider]
                continue
            entrant.function = steps.function(provider, samples[:size])
            try:
                _, memory = run_for_memory(entrant.function, session.device)
            except Exception as error:
                full = is_out_of_memory(error)
                problem = f"{OUT_OF_MEMORY} at {size} samples" if full else f"failed: {message_of(error)}"
                entrant.problem = reasons[provider] = problem
            else:
                infos[provider] = {
                    "role": "ours" if provider.startswith("amopo") else "peer", "trained": steps.trained,
                    "tokens": tokens_of(provider, samples[:size]), "logp_difference": differences[provider], **memory,
                }  # fmt: skip
            if entrant.problem is not None:  # outside the handler: the exception holds the frames of the call
                entrant.release()
                alive.remove(provider)
                steps.model.zero_grad(set_to_none=True)
                release_memory(session.device)
        racing = [entrants[size, provider] for provider in alive]
        race(racing, session.device, seconds=5.0 if session.full else 0.05, min_rounds=3, max_rounds=10)
        for provider in PROVIDERS:
            entrant = entrants[size, provider]
            if entrant.problem is None:
                infos[provider]["samples_per_second"] = size / entrant.stats()["median"]
            key = {"shape": str(shape), "samples": size, "provider": provider, "small": not session.full}
            session.record(QUESTION, key, entrant, infos.get(provider, {}))
            entrant.release()
    del steps
    gc.collect()
    release_memory(session.device)
    return entrants


@pytest.mark.parametrize("entrant", PROVIDERS)
@pytest.mark.parametrize("size", SIZES["full"])
def test_step(benchmark, bench_session, step_shape, size, entrant):
    if size not in sizes_of(bench_session):
        pytest.skip("with --full only")
    if importlib.util.find_spec("transformers") is None:
        pytest.skip("transformers is not installed")
    entrants = bench_session.race((QUESTION, step_shape), lambda: _race(bench_session, step_shape))
    found = entrants[size, entrant]
    if found.problem is not None and not found.problem.startswith("failed"):
        pytest.skip(f"{entrant}: {found.problem}")  # a result, not a fault
    benchmark.group = f"{QUESTION} {step_shape}, {size} samples"
    replay(benchmark, found)
