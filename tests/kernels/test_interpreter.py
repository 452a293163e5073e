"""The whole suite of the head and of the loss again, on the Triton kernels in Triton's interpreter.

The interpreter is chosen when a kernel is decorated, so it runs in a process of its own. Its casts to bf16 truncate and
its bf16 products are wrong, so precision is judged in fp32 and fp16 there. What a CUDA device runs by default (fp32
logits to a separate G in half precision, rows gathered by index) never runs on a CPU: the tests for a device start
those kernels themselves, and go through them here in their dry run.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import pytest

pytest.importorskip("triton")
ROOT = Path(__file__).resolve().parents[2]


class Suite(NamedTuple):
    """Tests (files, `-k` selection) and the kernels that must have been started when they are through."""

    paths: str
    selection: str
    kernels: set[str]
    dry_run: bool = False


# Small shapes only: the interpreter takes milliseconds per program.
SUITES = {
    "head": Suite(
        "tests/kernels/test_linear_logprobs.py tests/kernels/test_strides.py tests/kernels/test_row_reads.py",
        "(float32 or float16 or fp16 or vocabulary_size or second_backward or frozen or strided or test_strides or "
        "row_reads) and not torch.bfloat16",
        {"row_pass", "row_pass_softcap", "tile_pass", "scale_rows", "sequence_stats", "mobt", "expand_segments"},
    ),
    "statistics": Suite(
        "tests/kernels/test_segments.py",
        "float32 or variance or gradients or one_token or no_sequences",
        {"sequence_stats", "expand_segments"},
    ),
    "objective": Suite("tests/kernels/test_mobt_op.py", "", {"mobt", "expand_segments"}),
    "loss": Suite(
        "tests/test_fused_loss.py",
        "",
        {"row_pass", "row_pass_softcap", "tile_pass", "scale_rows", "sequence_stats", "mobt", "expand_segments"},
    ),
    "gather": Suite("tests/kernels/test_gather.py", "not same_bits", {"gather_rows", "scatter_rows"}),
    "device forms": Suite(
        "tests/gpu/test_kernels.py",
        "not test_mobt and not test_sequence_stats",
        {"row_pass", "row_pass_softcap", "tile_pass", "gather_rows", "scatter_rows", "scale_rows"},
        dry_run=True,
    ),
}


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("name", SUITES)
def test_suite_passes_on_interpreted_kernels(name, tmp_path):
    suite, counts = SUITES[name], tmp_path / "launches.json"
    environment = {
        **os.environ, "TRITON_INTERPRET": "1", "AMOPO_BACKEND": "triton", "AMOPO_LAUNCHES": str(counts),
        "OMP_NUM_THREADS": "1",
    }  # fmt: skip
    if suite.dry_run:
        environment |= {"AMOPO_DRY_RUN": "1", "CUDA_VISIBLE_DEVICES": ""}
    command = [sys.executable, "-m", "pytest", *suite.paths.split(), "-q", "-x", "-p", "no:cacheprovider"]
    if suite.selection:
        command += ["-k", suite.selection]
    result = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert result.returncode == 0, result.stdout[-4000:] + result.stderr[-1000:]
    launched = {kernel for kernel, count in json.loads(counts.read_text()).items() if count}
    assert suite.kernels <= launched, f"not launched: {suite.kernels - launched}"
