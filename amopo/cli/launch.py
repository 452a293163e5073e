"""`--nproc N`: this command again, as N processes of torch's elastic launcher on this machine.

Contract
--------
`start(argv, nproc)` runs `amopo` with the arguments `argv` once per rank, as `torchrun --standalone` would, and returns
the exit status: 0; the status of the rank that failed first, whose message is printed once; 130 after Ctrl-C, which is
passed on to the ranks and waits until they have saved. No rank is started again. A rank's processes know from
`is_launched()` that they are ranks, and leave their errors to this one by `leave_failure(error)`.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import logging
import os
import shlex
import signal
import sys
import tempfile
import time
import uuid
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from amopo.cli.errors import UsageError, one_line
from amopo.cli.stop_signals import INTERRUPTED

LAUNCHED = "AMOPO_LAUNCHED_BY"  # in a rank: the words that started the command, as a shell takes them
# A rank that waits for one that has failed is ended; it has nothing to save that the others have.
GRACE_SECONDS = 5


def is_launched() -> bool:
    """Whether this process is a rank that `start` has started."""
    return LAUNCHED in os.environ


def program() -> list[str]:
    """The words before the command's name, as the command was started: `amopo`, or `python -m amopo`."""
    if is_launched():
        return shlex.split(os.environ[LAUNCHED])
    if Path(sys.argv[0]).name == "__main__.py" and "-m" in sys.orig_argv:
        return sys.orig_argv[: sys.orig_argv.index("-m") + 2]
    return ["amopo"]


def check(nproc: int, *, use_cpu: bool = False) -> None:
    """Raise for a number of processes that cannot be started here; `use_cpu`: they leave the GPUs alone."""
    if nproc < 1:
        raise UsageError(f"--nproc: at least 1 process, not {nproc}")
    if "RANK" in os.environ or "LOCAL_RANK" in os.environ:
        raise UsageError("--nproc: a launcher has started this process already (RANK is set); leave --nproc away")
    if use_cpu:
        return
    import torch

    found = torch.cuda.device_count()
    if 0 < found < nproc:
        raise UsageError(
            f"--nproc: {nproc} processes, but {found} GPUs are visible; one process per GPU is the most, unless "
            "--use-cpu leaves them alone"
        )


def start(argv: Sequence[str], nproc: int, *, debug: bool = False, use_cpu: bool = False) -> int:
    from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    check(nproc, use_cpu=use_cpu)
    os.environ[LAUNCHED] = shlex.join(program())
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // nproc)))
    known = {field.name for field in dataclasses.fields(LaunchConfig)}
    wanted = {"signals_to_handle": "SIGHUP,SIGQUIT", "shutdown_timeout": GRACE_SECONDS}
    if not debug:
        logging.disable(logging.ERROR)  # the launcher's own account of what a rank says itself
    with tempfile.TemporaryDirectory(prefix="amopo-ranks-") as folder, _signals_to_ranks():
        config = LaunchConfig(
            min_nodes=1,
            max_nodes=1,
            nproc_per_node=nproc,
            run_id=str(uuid.uuid4()),
            rdzv_backend="c10d",
            rdzv_endpoint="localhost:0",
            local_addr="localhost",
            max_restarts=0,
            logs_specs=DefaultLogsSpecs(log_dir=folder),
            **{name: value for name, value in wanted.items() if name in known},
        )
        try:
            elastic_launch(config, sys.executable)(*_python_flags(), "-m", "amopo", *argv)
        except ChildFailedError as error:
            return _report(error.failures)
        finally:
            del os.environ[LAUNCHED]
            logging.disable(logging.NOTSET)
    return 0


def leave_failure(error: BaseException) -> bool:
    """In a rank that `start` has started: leaves the error's line for the launcher. False anywhere else."""
    path = os.environ.get("TORCHELASTIC_ERROR_FILE")
    if not is_launched() or path is None:
        return False
    now = time.time()
    text = json.dumps({"message": one_line(error), "timestamp": str(int(now)), "time": now})
    with contextlib.suppress(OSError):
        Path(path).write_text(text, encoding="utf-8")
    return True


def _report(failures: dict[int, Any]) -> int:
    """Says what the rank said that failed first: the others fail because it is gone."""

    def moment(rank: int) -> float:
        data = failures[rank].error_file_data
        return data["time"] if "time" in data else failures[rank].timestamp

    told = [rank for rank in failures if "time" in failures[rank].error_file_data]
    if not told and any(failure.exitcode == INTERRUPTED for failure in failures.values()):
        return INTERRUPTED  # the first rank has said so
    rank = min(told or failures, key=moment)
    failure = failures[rank]
    if rank in told:
        print(f"amopo: error: rank {rank}: {failure.message}", file=sys.stderr)
        return failure.exitcode
    how = f"was ended by {failure.signal_name()}" if failure.exitcode < 0 else f"ended with status {failure.exitcode}"
    hint = " (out of memory?)" if failure.exitcode == -signal.SIGKILL else ""
    print(f"amopo: error: rank {rank} {how}{hint}; the other ranks were stopped", file=sys.stderr)
    return failure.exitcode if failure.exitcode > 0 else 1


@contextlib.contextmanager
def _signals_to_ranks() -> Iterator[None]:
    """Ctrl-C and SIGTERM reach the ranks as Ctrl-C; SIGTERM itself is how the launcher ends them."""
    import psutil

    def forward(number: int, frame: Any) -> None:
        ranks = psutil.Process().children()
        if not ranks:
            raise KeyboardInterrupt
        for rank in ranks:
            with contextlib.suppress(psutil.NoSuchProcess):
                rank.send_signal(signal.SIGINT)

    before = {number: signal.signal(number, forward) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _python_flags() -> list[str]:
    """The folder that the command is run in is where modules are looked for only if it is so here."""
    looks_here = sys.path and sys.path[0] in ("", os.getcwd())
    return [] if looks_here else ["-P"]
