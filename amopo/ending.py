"""How a process that is one of several ranks ends: first its part in their group, then itself.

gloo, by which ranks on CPUs speak, keeps threads. One that still holds a tensor when the interpreter goes away needs
it to let go of the tensor, and aborts the process: a run that went well ends with SIGABRT. PyTorch leaves that to its
caller. Leaving the group ends the threads where nobody else holds the group; FSDP2's and DeepSpeed's meshes do, and of
14 pairs of ranks that held it and ended right after a collective 7 were aborted; ended as here, none. DDP's reducer
holds it too. Where that is the last to let go, it waits for the threads with the interpreter's lock in its hand, and a
thread that needs this lock to let go of its tensor waits for ever: half of such ends hung. So the group is kept, with
its threads, until the process is gone.

Contract
--------
`leave_group()` ends the process's part in the group, if it is in one. `entry(main)` runs `main` as the whole process:

    from amopo.ending import entry

    def main():
        ...

    if __name__ == "__main__":
        entry(main)

The exit status is what Python would make of `sys.exit(main())`: 0 for None, an int itself, 1 for a message, which is
printed, or an error; 130 for Ctrl-C. A process that was in a group ends without tearing the interpreter down, after
other threads have ended, functions registered with `atexit` since have run, and open files are flushed. What modules
imported before had registered does not run: close temporary folders yourself. A process that was in none ends as ever.
Do without `destroy_process_group()` and accelerate's `end_training()`, after which DDP's reducer may be the last to let
go. This module imports no torch.
"""

from __future__ import annotations

import atexit
import contextlib
import gc
import io
import logging
import os
import signal
import sys
from collections.abc import Callable
from typing import Any, NoReturn

_has_left_group = False
_kept: list[Any] = []  # the group that was left, which nothing may take down


def _is_in_group() -> bool:
    distributed = sys.modules.get("torch.distributed")
    return distributed is not None and distributed.is_available() and distributed.is_initialized()


def leave_group() -> None:
    """Ends this process's part in the group of ranks, if it is in one.

    Not in the middle of a step, after an error say: this rank may have begun a collective that others never join.
    """
    global _has_left_group
    if _is_in_group():
        distributed = sys.modules["torch.distributed"]
        _kept.append(distributed.group.WORLD)
        distributed.destroy_process_group()
        _has_left_group = True


def entry(main: Callable[[], Any]) -> NoReturn:
    """Run `main` as the whole of this process."""
    status = 1  # of an error that nobody catches

    def end() -> None:
        if not (_has_left_group or _is_in_group()):
            return
        logging.shutdown()  # registered by `logging` itself, possibly before this
        for opened in [sys.stdout, sys.stderr, *gc.get_objects()]:
            if issubclass(type(opened), io.IOBase) and not opened.closed:
                with contextlib.suppress(OSError, ValueError):
                    opened.flush()
        os._exit(status)

    atexit.register(end)  # before all that `main` loads: the last that is registered runs first
    try:
        sys.exit(main())
    except SystemExit as stop:
        status = 0 if stop.code is None else stop.code if isinstance(stop.code, int) else 1
        raise
    except KeyboardInterrupt:
        status = 128 + signal.SIGINT
        raise
