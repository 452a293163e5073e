"""How many tokens are there on real data, padded and packed, and how fast is packing?

For a whole data set: tokens of the padded rows of the released step (B = 1 and 4), of the sequences end to end (`none`,
what varlen kernels would run), and of the packed rows (`pair`, `tree`), rows through the head, and the time of
`amopo.pack` over all batches of 8192 tokens, on one core. The key holds the lengths of prompts (with template) and
responses at 10, 50, 90 and 100 %.
"""

from __future__ import annotations

import statistics

import pytest
import torch

from amopo.packing import pack, packed_size
from amopo.packing.batching import best_fit_decreasing
from bench.common import step_data
from bench.common.measure import REPLAY, Entrant, race
from bench.common.released_step import padded_rows
from bench.common.replay import replay

pytestmark = pytest.mark.benchmark(timer=REPLAY)
QUESTION = "layouts"
LAYOUTS = ("padded_b1", "padded_b4", "none", "pair", "tree")
BUDGET = 8192


def quantiles(lengths: list[int]) -> str:
    cuts = statistics.quantiles(lengths, n=10, method="inclusive")
    return f"{cuts[0]:.0f} / {statistics.median(lengths):.0f} / {cuts[8]:.0f} / {max(lengths)}"


def lengths_of(samples) -> dict[str, str]:
    return {
        "prompts": quantiles([len(prompt) for sample in samples for prompt in sample.prompts]),
        "responses": quantiles([len(text) for sample in samples for text in (sample.chosen, sample.rejected)]),
    }


def _race(session, name):
    samples = list(step_data.load_samples(name) if session.full else step_data.load_samples(name, 4, short=True))
    entrants, infos, tokens = {}, {}, {}
    for layout in LAYOUTS:
        if layout.startswith("padded"):
            size = int(layout.removeprefix("padded_b"))
            batches = [samples[i : i + size] for i in range(0, len(samples), size)]
            tokens[layout] = rows = sum(padded_rows(batch)[0].numel() for batch in batches)

            def run(batches=batches):
                return [padded_rows(batch) for batch in batches]
        else:
            sizes = [packed_size(sample, sharing=layout) for sample in samples]
            tokens[layout], rows = sum(size.tokens for size in sizes), sum(size.rows for size in sizes)
            lengths = [size.tokens for size in sizes]
            bins = best_fit_decreasing(range(len(samples)), lengths, budget=max(BUDGET, *lengths))
            batches = [[samples[i] for i in indices] for indices in bins]

            def run(batches=batches, layout=layout):
                return [pack(batch, sharing=layout) for batch in batches]

            made = sum(batch.layout.num_tokens for batch in run())
            assert made == tokens[layout], f"{layout}: packed_size says {tokens[layout]} tokens, pack made {made}"
        entrants[layout] = Entrant(layout, run)
        infos[layout] = {"role": "ours", "tokens": tokens[layout], "head_rows": rows, "samples": len(samples)}
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        race(list(entrants.values()), torch.device("cpu"), **session.effort())
    finally:
        torch.set_num_threads(threads)
    for layout, entrant in entrants.items():
        if entrant.problem is None:
            # what goes in: the sequences written out, whatever the layout makes of them
            infos[layout]["input_tokens_per_second"] = tokens["none"] / entrant.stats()["median"]
            infos[layout]["of_none"] = tokens[layout] / tokens["none"]
        key = {"data": name, **lengths_of(samples), "provider": layout, "small": not session.full}
        session.record(QUESTION, key, entrant, infos[layout])
        entrant.release()
    return entrants


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("data", step_data.DATA_SETS)
def test_layouts(benchmark, bench_session, data, layout):
    pytest.importorskip("transformers")
    if bench_session.device.type != "cpu":
        pytest.skip("packing runs on the host")
    if step_data.missing(data):
        pytest.skip(step_data.missing(data))
    entrants = bench_session.race((QUESTION, data), lambda: _race(bench_session, data))
    benchmark.group = f"{QUESTION} {data}"
    replay(benchmark, entrants[layout])
