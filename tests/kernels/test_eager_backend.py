"""The suites of head and loss on the eager operations, where C++ would serve them otherwise.

In a process of its own, as a user would ask for it: `AMOPO_BACKEND=eager`.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from amopo_kernels import cpp

ROOT = Path(__file__).resolve().parents[2]
SUITES = (
    "tests/kernels/test_linear_logprobs.py", "tests/kernels/test_segments.py", "tests/kernels/test_mobt_op.py",
    "tests/test_fused_loss.py",
)  # fmt: skip
PROBE = (
    "from amopo_kernels import backend; print({backend.choose(name, 'cpu')[0] for name in ('row_pass', 'tile_pass', "
    "'sequence_stats', 'mobt')})"
)


@pytest.mark.slow
@pytest.mark.skipif(not cpp.available()[0], reason="eager is what runs here anyway")
def test_everything_holds_on_eager_operations():
    environment = os.environ | {"AMOPO_BACKEND": "eager", "OMP_NUM_THREADS": "1"}
    environment["PYTHONPATH"] = os.pathsep.join([str(ROOT), str(ROOT / "kernels")])
    options = {"env": environment, "cwd": ROOT, "capture_output": True, "text": True, "timeout": 280}
    assert subprocess.run([sys.executable, "-c", PROBE], **options).stdout == "{'eager'}\n"
    done = subprocess.run([sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *SUITES], **options)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-2000:]
