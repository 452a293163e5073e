"""What a command says while it runs.

`Console(quiet=...)`: `say(text)` prints a line to stdout; `bar(title)` gives a context manager whose
`update(done, total, note)` moves a progress bar on stderr when that is a terminal, and prints a plain line now and then
when it is not; a total of 0 is one that is not known. `counter(title)` gives a bar that shows only when it takes longer
than `PATIENCE`, as reading mostly does not. Quiet says nothing. `stage(name)` adds the seconds of a block to
`seconds[name]`. `plain_to` is where plain lines go: stderr where stdout is for a result.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TextIO

# Without a terminal: a line at least this many seconds after the last one.
PLAIN_EVERY = 10.0
# Nobody needs to be told of what takes fewer seconds.
PATIENCE = 2.0


class Bar:
    """Progress of one loop. Without a terminal it writes lines. `is_late`: only if it takes longer than `PATIENCE`."""

    def __init__(
        self, title: str, *, quiet: bool, interactive: bool, is_late: bool = False, plain_to: TextIO | None = None
    ) -> None:
        self.title, self.done, self.total, self.note = title, 0, 0, ""
        self._quiet, self._is_late, self._plain_to = quiet, is_late, plain_to
        self._has_line = False
        self._started = self._last_line = time.monotonic()
        self._tqdm = None
        if interactive and not quiet:
            from tqdm import tqdm

            delay = PATIENCE if is_late else 0
            self._tqdm = tqdm(desc=title, file=sys.stderr, dynamic_ncols=True, leave=not is_late, delay=delay)

    def update(self, done: int, total: int, note: str = "") -> None:
        """`done` steps of the total are over; an empty note keeps the one shown."""
        step, self.done, self.total = done - self.done, done, total
        self.note = note or self.note
        if self._tqdm is not None:
            self._tqdm.total = total or None
            if note:
                self._tqdm.set_postfix_str(note, refresh=False)
            self._tqdm.update(step)
        elif not self._quiet and time.monotonic() - self._last_line >= self._wait():
            self._line()

    def _wait(self) -> float:
        return PATIENCE if self._is_late and not self._has_line else PLAIN_EVERY

    def close(self) -> None:
        if self._tqdm is not None:
            self._tqdm.close()
        elif not self._quiet and (self._has_line or not self._is_late):
            self._line()

    def _line(self) -> None:
        self._last_line, self._has_line = time.monotonic(), True
        done = f"{self.done}/{self.total} ({100 * self.done // self.total} %)" if self.total else str(self.done)
        note = f", {self.note}" if self.note else ""
        seconds = self._last_line - self._started
        print(f"{self.title}: {done}, {seconds:.0f} s{note}", flush=True, file=self._plain_to)


class Console:
    def __init__(self, *, quiet: bool = False, plain_to: TextIO | None = None) -> None:
        self.quiet = quiet
        self.plain_to = plain_to
        self.interactive = sys.stderr.isatty()
        self.seconds: dict[str, float] = {}

    def say(self, text: str = "") -> None:
        if not self.quiet:
            print(text, flush=True)

    @contextmanager
    def bar(self, title: str) -> Iterator[Bar]:
        bar = Bar(title, quiet=self.quiet, interactive=self.interactive, plain_to=self.plain_to)
        try:
            yield bar
        finally:
            bar.close()

    @contextmanager
    def counter(self, title: str) -> Iterator[Callable[[int], None]]:
        """Gives a function that is told how many there are so far."""
        bar = Bar(title, quiet=self.quiet, interactive=self.interactive, is_late=True, plain_to=self.plain_to)
        try:
            yield lambda done: bar.update(done, 0)
        finally:
            bar.close()

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        started = time.monotonic()
        try:
            yield
        finally:
            self.seconds[name] = self.seconds.get(name, 0.0) + time.monotonic() - started
