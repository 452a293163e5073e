"""How near is the row pass to a copy of the same bytes?

The row pass reads logits and writes G; nothing else of it grows with the vocabulary, so bytes are its roofline. Two
counts stand side by side (`bench.common.row_forms`): the state bytes, each logit read once and each entry of G written
once, and the bytes that a kernel asks for, every sweep counted. The copy moves the state bytes, half of them read and
half written.
"""

from __future__ import annotations

import pytest
import torch

from amopo_kernels import backend
from amopo_kernels import row_pass as eager
from amopo_kernels.row_pass import RowState, Transform
from bench.common.measure import REPLAY, Entrant, race, run_for_memory
from bench.common.providers import backend_missing
from bench.common.replay import replay
from bench.common.row_forms import FORMS, of_copy

pytestmark = pytest.mark.benchmark(timer=REPLAY)
QUESTION = "row_pass"
PROVIDERS = ("copy", *backend.BACKENDS)
ROWS = {"small": 32, "cpu": 256, "cuda": 4096}


def _race(session, shape, name_of_form):
    form = FORMS[name_of_form]
    rows, vocab, device = ROWS[session.scale], shape.vocab, session.device
    generator = torch.Generator(device).manual_seed(0)
    logits = (torch.randn(rows, vocab, generator=generator, device=device) * 3.0).to(form.logits)
    targets = torch.randint(0, vocab, (rows,), generator=generator, device=device)
    # The eager form may write over its logits: every round starts from a fresh copy.
    work = torch.empty_like(logits)
    out = work if form.in_place else torch.empty(rows, vocab, dtype=form.stored, device=device)
    logp, state = torch.empty(rows, device=device), RowState.empty(rows, torch.float32, device)
    half = form.stored == torch.float16
    block_rows = max(1, (8 << 20) // (4 * vocab)) if device.type == "cpu" else rows
    exact = torch.log_softmax(logits[:64].double(), -1).gather(1, targets[:64, None])[:, 0]
    source = torch.empty(rows * vocab * form.state_bytes // 2, dtype=torch.int8, device=device)
    copy = torch.empty_like(source)
    entrants, problems = {"copy": Entrant("copy", lambda: copy.copy_(source))}, {}
    infos = {"copy": run_for_memory(entrants["copy"].function, device)[1]}
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
        function()
        setup()
        logp.fill_(torch.nan)
        _, memory = run_for_memory(function, device)
        error = float((logp[:64].double() - exact).abs().max())
        assert error < 2e-5, f"{name}, {name_of_form}: log-probs are off by {error}"
        entrants[name] = Entrant(name, function, setup)
        infos[name] = {"logp_error": error, **memory}
    race(list(entrants.values()), device, **session.effort())
    copied = entrants["copy"]
    copy_median = None if copied.problem else copied.stats()["median"]
    for name in PROVIDERS:
        key = {
            "shape": str(shape), "rows": rows, "vocab": vocab, "small": not session.full, "form": name_of_form,
            "provider": name,
        }  # fmt: skip
        if name in problems:
            session.recorder.put(QUESTION, key, skipped=problems[name])
            continue
        entrant = entrants[name]
        if entrant.problem is None:
            infos[name] |= of_copy(form, name, entrant.stats()["median"], copy_median, rows * vocab)
        session.record(QUESTION, key, entrant, infos[name])
        entrant.release()
    return entrants, problems


@pytest.mark.parametrize("backend_name", PROVIDERS)
@pytest.mark.parametrize("form", FORMS)
def test_row_pass(benchmark, bench_session, form, backend_name):
    shape = bench_session.shapes()[0]
    entrants, problems = bench_session.race((QUESTION, shape, form), lambda: _race(bench_session, shape, form))
    if backend_name in problems:
        pytest.skip(f"{backend_name}: {problems[backend_name]}")
    benchmark.group = f"{QUESTION} {form}"
    replay(benchmark, entrants[backend_name])
