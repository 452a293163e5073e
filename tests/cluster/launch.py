"""Starts a worker on several CPU ranks, as a user would, and ends it with the test."""

from __future__ import annotations

import atexit
import importlib.util
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

HERE = Path(__file__).parent
ROOT = HERE.parents[1]

TORCHRUN = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node")
needs_deepspeed = pytest.mark.skipif(
    importlib.util.find_spec("deepspeed") is None,
    reason="deepspeed is not installed: make test-deepspeed runs these",
)


# DeepSpeed builds its communication for CPUs at its first start. In a folder of this session's own: a process that is
# killed while it builds leaves a lock behind, at which every later one waits for ever.
EXTENSIONS = tempfile.mkdtemp(prefix="amopo-extensions-")
atexit.register(shutil.rmtree, EXTENSIONS, ignore_errors=True)


def environment(**changes: str) -> dict[str, str]:
    """One thread per rank; modules of this checkout; DeepSpeed on CPUs."""
    paths = [str(HERE), str(HERE.parent / "trainer"), str(ROOT), str(ROOT / "kernels")]
    one = {"PYTHONPATH": os.pathsep.join(paths), "OMP_NUM_THREADS": "1", "DS_ACCELERATOR": "cpu", "CI": "1"}
    one["TORCH_EXTENSIONS_DIR"] = os.environ.get("TORCH_EXTENSIONS_DIR", EXTENSIONS)
    return {**os.environ, **one, **changes}


def start(command: list[str], *, timeout: float = 800, **env: str) -> subprocess.CompletedProcess:
    """Run `python COMMAND`; a run that takes longer is killed with everything that it started."""
    process = subprocess.Popen(
        [sys.executable, "-P", *command],
        env=environment(**env),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        cwd=ROOT,
    )
    try:
        output, errors = process.communicate(timeout=timeout)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        output, errors = process.communicate()
        pytest.fail(f"{' '.join(command)} did not end in {timeout} s:\n{output[-2000:]}\n{errors[-4000:]}")
    return subprocess.CompletedProcess(command, process.returncode, output, errors)


def run_ranks(worker: str, *arguments: object, ranks: int = 2, timeout: float = 800, **env: str) -> None:
    """Run a worker of this folder under torchrun; it must end well."""
    done = start([*TORCHRUN, str(ranks), str(HERE / worker), *map(str, arguments)], timeout=timeout, **env)
    assert done.returncode == 0, f"{done.stdout[-3000:]}\n{done.stderr[-6000:]}"
