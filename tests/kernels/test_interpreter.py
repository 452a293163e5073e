"""The whole suite of the head and of the loss again, on the Triton kernels in Triton's interpreter.

The interpreter is chosen when a kernel is decorated, so it runs in a process of its own. Its casts to bf16 truncate and
its bf16 products are wrong, so precision is judged in fp32 there.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("triton")
ROOT = Path(__file__).resolve().parents[2]

# Small shapes only: the interpreter takes milliseconds per program.
SELECTED = {
    "tests/kernels/test_linear_logprobs.py": "(float32 or vocabulary_size or second_backward or frozen or strided) and "
    "not bfloat16",
    "tests/kernels/test_segments.py": "float32 or variance or gradients or one_token or no_sequences",
    "tests/kernels/test_mobt_op.py": "",
    "tests/test_fused_loss.py": "",
}


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("path, selection", SELECTED.items())
def test_suite_passes_on_interpreted_kernels(path, selection, tmp_path):
    counts = tmp_path / "launches.json"
    environment = {
        **os.environ, "TRITON_INTERPRET": "1", "AMOPO_BACKEND": "triton", "AMOPO_LAUNCHES": str(counts),
        "OMP_NUM_THREADS": "1",
    }  # fmt: skip
    command = [sys.executable, "-m", "pytest", path, "-q", "-x", "-p", "no:cacheprovider"]
    if selection:
        command += ["-k", selection]
    result = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert result.returncode == 0, result.stdout[-4000:] + result.stderr[-1000:]
    launched = set(__import__("json").loads(counts.read_text()))
    expected = {
        "tests/kernels/test_linear_logprobs.py": {"row_pass", "row_pass_softcap", "tile_pass", "scale_rows"},
        "tests/kernels/test_segments.py": {"sequence_stats", "expand_segments"},
        "tests/kernels/test_mobt_op.py": {"mobt", "expand_segments"},
        "tests/test_fused_loss.py": {"row_pass", "scale_rows", "mobt"},
    }[path]
    assert expected <= launched, f"not launched: {expected - launched}"
