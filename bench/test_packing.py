"""What does it gain, in a whole training step, that shared tokens are computed once?

Forward and backward of a 30M Qwen2 (V = 32768, H = 384, fp32), no optimizer, over the same real samples. Every layout
must give the log-probs of the released step before it is timed; `none`, `pair` and `tree` must give the same gradients.

    released_b1, released_b4   2K padded rows per sample with stored fp32 logits, 1 or 4 samples at a time
    none, pair, tree           packed rows to a token budget, AMoPO's loss

Beside the times: tokens of the rows, FLOPs of a step (body and attention counted by FlopCounterMode, the head by its
products), the ratio that these FLOPs allow over `none`, and the ratio that was reached.
"""

from __future__ import annotations

import importlib.util
import itertools

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from amopo.fused_loss import loss_from_logps
from amopo.packing import pack, packed_size
from amopo.packing.batching import best_fit_decreasing
from bench.common import attention_flops, step_data
from bench.common.measure import REPLAY, Entrant, race, run_for_memory
from bench.common.released_step import padded_rows, released_loss
from bench.common.replay import replay

pytestmark = pytest.mark.benchmark(timer=REPLAY)
QUESTION = "packing"
LAYOUTS = ("released_b4", "released_b1", "none", "pair", "tree")
# Of tokens. Larger rows make blocks of over 32 MB, which malloc takes from the system anew each time.
BUDGET = {"full": 4096, "small": 1024}


def released_batches(samples, size):
    return [samples[i : i + size] for i in range(0, len(samples), size)]


def released_step(model, samples, size):
    """Mean over micro-batches, as gradient accumulation has it; summed log-probs of all samples."""
    batches, sums = released_batches(samples, size), []
    for batch in batches:
        noise = torch.zeros(len(batch), batch[0].num_objectives, 2)
        loss, logps = released_loss(model, batch, noise)
        (loss / len(batches)).backward()
        sums.append(logps.detach())
    return torch.cat(sums)


def packed_batches(samples, sharing, budget):
    lengths = [packed_size(sample, sharing=sharing).tokens for sample in samples]
    bins = best_fit_decreasing(range(len(samples)), lengths, budget=max(budget, max(lengths)))
    return [(indices, pack([samples[i] for i in indices], sharing=sharing)) for indices in bins]


def packed_step(model, samples, batches):
    """AMoPO's loss over all samples; summed log-probs in their order."""
    sums = torch.empty(len(samples), samples[0].num_objectives, 2)
    for indices, batch in batches:
        logps = model(input_ids=batch.input_ids, position_ids=batch.position_ids, amopo_layout=batch.layout)
        result = loss_from_logps(logps, batch.layout, step=0, sample_ids=batch.sample_ids, normalizer=len(samples))
        result.loss.backward()
        sums[indices] = result.sum_logps.detach()
    return sums


def step_of(layout, model, samples, budget):
    """(function, rows' tokens, rows of the head, padded or represented tokens)."""
    sizes = {s: [packed_size(sample, sharing=s) for sample in samples] for s in ("none", "pair", "tree")}
    if layout.startswith("released"):
        size = int(layout.removeprefix("released_b"))
        tokens = sum(padded_rows(batch)[0].numel() for batch in released_batches(samples, size))
        return lambda: released_step(model, samples, size), tokens, tokens
    batches = packed_batches(samples, layout, budget)
    tokens, rows = (sum(getattr(size, name) for size in sizes[layout]) for name in ("tokens", "rows"))
    return lambda: packed_step(model, samples, batches), tokens, rows


def gradients(model):
    found = {name: parameter.grad.clone() for name, parameter in model.named_parameters()}
    model.zero_grad()
    return found


def counted_step(function, device, head_flops):
    """One call's (result, FLOPs, peak bytes): a step takes long, so both are counted in the same one.

    The counter stands inside the watch of allocations and does not know the operator of the packed head: its FLOPs are
    given, 6NVH.
    """
    attention_flops.register()
    counter = FlopCounterMode(display=False)

    def counted():
        with counter:
            return function()

    result, memory = run_for_memory(counted, device)
    return result, counter.get_total_flops() + head_flops, memory


def _race(session, name):
    from amopo.trainer.forward import patch_forward

    if session.full:
        samples = step_data.drawn(name, step_data.DATA_SETS[name].drawn)
    else:
        samples = list(step_data.load_samples(name, 2, short=True))
    model = step_data.make_model(11 if session.full else 1)
    budget = BUDGET["full" if session.full else "small"]
    entrants, infos, sums, grads = {}, {}, {}, {}
    patched = patch_forward(model)
    for layout in LAYOUTS:
        function, tokens, rows = step_of(layout, model, samples, budget)

        def timed(function=function):
            model.zero_grad()
            return function()

        head = 0 if layout.startswith("released") else 6 * rows * step_data.VOCAB * model.config.hidden_size
        sums[layout], flops, memory = counted_step(timed, session.device, head)
        grads[layout] = gradients(model)
        infos[layout] = {
            "role": "scale" if layout.startswith("released") else "ours", "tokens": tokens, "head_rows": rows,
            "flops": flops, "samples": len(samples), **memory,
        }  # fmt: skip
        entrants[layout] = Entrant(layout, timed)
    for layout in LAYOUTS:
        difference = ((sums[layout] - sums["none"]) / sums["none"]).abs().max().item()
        assert difference < 1e-4, f"{layout}: log-probs differ from those of 'none' by {difference:.1e} relative"
        infos[layout]["logp_difference"] = difference
    for layout, parameter in itertools.product(("pair", "tree"), grads["none"]):
        exact, got = grads["none"][parameter], grads[layout][parameter]
        assert (got - exact).norm() < 1e-3 * exact.norm(), f"{layout}: gradient of {parameter} differs"
    race(list(entrants.values()), session.device, **session.effort())
    patched.remove()
    base = infos["none"]["flops"], entrants["none"].stats()["median"]
    for layout, entrant in entrants.items():
        if entrant.problem is None:
            median = entrant.stats()["median"]
            infos[layout] |= {
                "samples_per_second": len(samples) / median, "possible": base[0] / infos[layout]["flops"],
                "reached": base[1] / median,
            }  # fmt: skip
        session.record(QUESTION, {"data": name, "provider": layout, "small": not session.full}, entrant, infos[layout])
        entrant.release()
    return entrants


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("data", step_data.DATA_SETS)
def test_packing(benchmark, bench_session, data, layout):
    if bench_session.device.type != "cpu":
        pytest.skip("the step of a small model in fp32, for CPUs")
    if importlib.util.find_spec("transformers") is None:
        pytest.skip("transformers is not installed")
    if step_data.missing(data):
        pytest.skip(step_data.missing(data))
    entrants = bench_session.race((QUESTION, data), lambda: _race(bench_session, data))
    benchmark.group = f"{QUESTION} {data}"
    replay(benchmark, entrants[layout])
