"""How near is the row pass to a copy of the same bytes?

The row pass reads logits and writes G; nothing else of it grows with the vocabulary, so bytes are its roofline. State
bytes per logit: 6 from fp32 logits to bf16 (4 read, 2 written), 8 in place in fp32, 4 in place in bf16 (a second read
comes from the cache and is not counted). The copy moves as many bytes, half of them read and half written.
"""

from __future__ import annotations

import pytest
import torch

from amopo_kernels import backend
from amopo_kernels import row_pass as eager
from amopo_kernels.row_pass import RowState, Transform
from bench.common.measure import REPLAY, Entrant, race
from bench.common.providers import backend_missing
from bench.common.replay import replay

pytestmark = pytest.mark.benchmark(timer=REPLAY)
QUESTION = "row_pass"
FORMS = {
    "fp32_to_bf16": (torch.float32, torch.bfloat16),
    "fp32_to_fp16": (torch.float32, torch.float16),
    "fp32_in_place": (torch.float32, torch.float32),
    "bf16_in_place": (torch.bfloat16, torch.bfloat16),
}
PROVIDERS = ("copy", *backend.BACKENDS)
ROWS = {"small": 32, "cpu": 256, "cuda": 4096}


def _race(session, shape, form):
    source_dtype, stored_dtype = FORMS[form]
    rows, vocab, device = ROWS[session.scale], shape.vocab, session.device
    generator = torch.Generator(device).manual_seed(0)
    logits = (torch.randn(rows, vocab, generator=generator, device=device) * 3.0).to(source_dtype)
    targets = torch.randint(0, vocab, (rows,), generator=generator, device=device)
    total_bytes = rows * vocab * (source_dtype.itemsize + stored_dtype.itemsize)
    # The eager form may write over its logits: every round starts from a fresh copy.
    work = torch.empty_like(logits)
    out = work if source_dtype == stored_dtype else torch.empty(rows, vocab, dtype=stored_dtype, device=device)
    logp, state = torch.empty(rows, device=device), RowState.empty(rows, torch.float32, device)
    half = stored_dtype == torch.float16
    block_rows = max(1, (8 << 20) // (4 * vocab)) if device.type == "cpu" else rows
    exact = torch.log_softmax(logits[:64].double(), -1).gather(1, targets[:64, None])[:, 0]
    source = torch.empty(total_bytes // 2, dtype=torch.int8, device=device)
    copy = torch.empty_like(source)
    entrants, infos, problems = {"copy": Entrant("copy", lambda: copy.copy_(source))}, {"copy": {}}, {}
    for name in backend.BACKENDS:
        problem = backend_missing(name, device)
        if problem:
            problems[name] = problem
            continue
        module = backend.load(name) or eager

        def function(module=module):
            module.row_pass(
                work, targets, None, Transform(), logp=logp, state=state, out=out, half_range=half,
                block_rows=block_rows,
            )  # fmt: skip

        def setup():
            work.copy_(logits)

        setup()
        logp.fill_(torch.nan)
        function()
        error = float((logp[:64].double() - exact).abs().max())
        assert error < 2e-5, f"{name}, {form}: log-probs are off by {error}"
        entrants[name] = Entrant(name, function, setup)
        infos[name] = {"logp_error": error}
    race(list(entrants.values()), device, **session.effort())
    copy_median = entrants["copy"].stats()["median"]
    for name in PROVIDERS:
        key = {
            "shape": str(shape), "rows": rows, "vocab": vocab, "small": not session.full, "form": form, "provider": name
        }  # fmt: skip
        if name in problems:
            session.recorder.put(QUESTION, key, skipped=problems[name])
            continue
        stats = entrants[name].stats()
        infos[name] |= {
            "bytes": total_bytes,
            "bytes_per_logit": source_dtype.itemsize + stored_dtype.itemsize,
            "bandwidth": total_bytes / stats["median"],
            "of_copy": copy_median / stats["median"],
        }
        session.recorder.put(QUESTION, key, stats=stats, info=infos[name])
    for entrant in entrants.values():
        entrant.function = entrant.setup = None
    return entrants, infos, problems


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("backend_name", PROVIDERS)
def test_row_pass(benchmark, bench_session, form, backend_name):
    shape = bench_session.shapes()[0]
    entrants, infos, problems = bench_session.race((QUESTION, shape, form), lambda: _race(bench_session, shape, form))
    if backend_name in problems:
        pytest.skip(f"{backend_name}: {problems[backend_name]}")
    benchmark.group = f"{QUESTION} {form}"
    replay(benchmark, entrants[backend_name], infos[backend_name])
