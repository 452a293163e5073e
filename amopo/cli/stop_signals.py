"""Ctrl-C and SIGTERM while something runs that should end in order.

Contract
--------
`with StopSignals() as stop:` — the first signal sets `stop.asked` and says so on stderr; the second ends the process at
once with status 130, whatever it is doing. A thread of its own reads the signals, so that a process that waits inside a
library (for another rank, for a device) still ends. Outside the block signals mean what they meant before.
`with terminate_like_interrupt():` — SIGTERM raises KeyboardInterrupt, as Ctrl-C does.

Under a launcher, signals within a second of the first count as the same one: a terminal sends Ctrl-C to every process,
and the launcher passes its own on. Outside the main thread, where Python takes no handlers, nothing changes.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from amopo.cli.console import is_main_process

INTERRUPTED = 130
WATCHED = (signal.SIGINT, signal.SIGTERM)
SAME_SIGNAL_SECONDS = 1.0
WATCHER_SECONDS = 1.0

_STOPPING = "amopo: stopping after this step, with a checkpoint; a second Ctrl-C stops at once, without\n"
_AT_ONCE = "amopo: interrupted at once; what came after the last checkpoint is lost\n"


class StopSignals:
    """Collects signals; `asked` becomes true at the first, and the second ends the process."""

    def __init__(self, signals: tuple[int, ...] = WATCHED) -> None:
        self._signals = signals
        self._asked = threading.Event()
        self._previous: dict[int, Any] = {}
        self._pipe: tuple[int, int] | None = None
        self._watcher: threading.Thread | None = None
        self._old_fd = -1
        self._deaf = False

    @property
    def asked(self) -> bool:
        return self._asked.is_set()

    def __enter__(self) -> StopSignals:
        if threading.current_thread() is not threading.main_thread():
            return self
        read, write = self._pipe = os.pipe()
        os.set_blocking(write, False)
        # The signal's number goes into the pipe when it arrives; Python's own handlers wait for the main thread.
        self._old_fd = signal.set_wakeup_fd(write, warn_on_full_buffer=False)
        _ACTIVE.add(write)
        self._previous = {number: signal.signal(number, _nothing) for number in self._signals}
        self._watcher = threading.Thread(target=self._watch, args=(read,), daemon=True)
        self._watcher.start()
        return self

    def __exit__(self, *error: object) -> None:
        if self._pipe is None:
            return
        if not (self._deaf and _under_launcher()):
            for number, handler in self._previous.items():
                signal.signal(number, handler)
        signal.set_wakeup_fd(self._old_fd)
        _ACTIVE.discard(self._pipe[1])
        os.close(self._pipe[1])  # the watching thread reads the end, closes its own side, and is gone
        self._pipe = None
        # A thread that still wants the interpreter's lock holds the main one up on its way into a wait, after its last
        # look for signals: one that comes then is seen when the wait ends. Bounded, since stderr's reader may not read.
        self._watcher.join(timeout=WATCHER_SECONDS)

    def deaf(self) -> None:
        """From here on signals change nothing: everything is saved, and the process is about to end.

        Under a launcher to the very end: it ends the other ranks as soon as one is through, and this one may still have
        to say how to go on.
        """
        if self._pipe is not None:
            self._deaf = True
            for number in WATCHED:
                self._previous.setdefault(number, signal.getsignal(number))
                signal.signal(number, signal.SIG_IGN)

    def _watch(self, read: int) -> None:
        first = 0.0
        while number := os.read(read, 1):
            if number[0] not in self._signals:
                continue
            now = time.monotonic()
            if not self._asked.is_set():
                first = now
                self._asked.set()
                if is_main_process():
                    _to_stderr(_STOPPING)
            elif not (_under_launcher() and now - first < SAME_SIGNAL_SECONDS):
                if is_main_process():
                    _to_stderr(_AT_ONCE)
                os._exit(INTERRUPTED)
        os.close(read)


@contextmanager
def terminate_like_interrupt() -> Iterator[None]:
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, _interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _interrupt(number: int, frame: Any) -> None:
    raise KeyboardInterrupt


def _nothing(number: int, frame: Any) -> None:
    pass


def _under_launcher() -> bool:
    return "RANK" in os.environ or "LOCAL_RANK" in os.environ


def _to_stderr(text: str) -> None:
    try:
        sys.stderr.write(text)
        sys.stderr.flush()
    except (OSError, ValueError):  # nobody reads it any more
        pass


# A forked worker of a data loader gets the same Ctrl-C from the terminal, and shares the pipe: it would write a second
# one into it.
_ACTIVE: set[int] = set()


def _leave_the_pipe() -> None:
    if _ACTIVE:
        signal.set_wakeup_fd(-1)
        _ACTIVE.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_leave_the_pipe)
