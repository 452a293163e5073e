"""How many kernels start between hidden states and loss? CUDA only, counted by the profiler.

With `--bench-results` the trace is kept beside the numbers (chrome://tracing, Perfetto).
"""

from __future__ import annotations

import gzip
import time
from collections import Counter
from pathlib import Path

import pytest
import torch

from amopo.fused_loss import fused_loss
from bench.common.measure import REPLAY, Entrant, run_for_memory
from bench.common.ours import packed_layout
from bench.common.replay import replay

pytestmark = pytest.mark.benchmark(timer=REPLAY)
QUESTION = "launches"


@pytest.mark.parametrize("frozen", [False, True], ids=["full", "frozen"])
def test_launches(benchmark, bench_session, shape, frozen, tmp_path):
    if bench_session.device.type != "cuda":
        pytest.skip("launches are counted on CUDA devices")
    case = bench_session.case(shape, "peaked")
    layout = packed_layout(case)
    hidden, weight = case.leaves(frozen)

    def forward():
        return fused_loss(hidden, weight, layout=layout, step=0, seed=1)

    forward().loss.backward()
    hidden.grad = weight.grad = None
    _, memory = run_for_memory(forward, case.device)
    activities = [torch.profiler.ProfilerActivity.CPU, torch.profiler.ProfilerActivity.CUDA]
    with torch.profiler.profile(activities=activities) as profiler:
        start = time.perf_counter()
        result = forward()
        torch.cuda.synchronize()
        seconds = time.perf_counter() - start
    with torch.profiler.profile(activities=activities) as backward_profiler:
        result.loss.backward()
        torch.cuda.synchronize()
    kernels, backward_kernels = _kernels(profiler), _kernels(backward_profiler)
    info = {
        "frozen": frozen, "launches": sum(kernels.values()), "backward_launches": sum(backward_kernels.values()),
        "kernels": {name[:100]: count for name, count in kernels.most_common()},
        **memory, "backward_kernels": {name[:100]: count for name, count in backward_kernels.most_common()},
    }  # fmt: skip
    entrant = Entrant("fused_loss", forward, times=[seconds])
    bench_session.record(QUESTION, bench_session.key(case, provider="fused_loss", frozen=frozen), entrant, info)
    if bench_session.recorder.folder is not None:
        name = f"trace-{'frozen' if frozen else 'full'}.json.gz"
        _keep_trace(profiler, tmp_path, bench_session.recorder.folder / name)
    benchmark.group = f"{QUESTION} {shape}"
    replay(benchmark, entrant)


def _kernels(profiler) -> Counter:
    return Counter(event.name for event in profiler.events() if event.device_type == torch.autograd.DeviceType.CUDA)


def _keep_trace(profiler, scratch: Path, path: Path) -> None:
    profiler.export_chrome_trace(str(scratch / "trace.json"))
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(gzip.compress((scratch / "trace.json").read_bytes()))
