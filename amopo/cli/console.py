"""What a command says while it runs.

`Console(quiet=...)`: `say(text)` prints a line to stdout; `bar(title)` gives a context manager whose
`update(done, total, note)` moves a progress bar on stderr when that is a terminal, and prints a plain line now and then
when it is not. Quiet says nothing. `stage(name)` adds the seconds of a block to `seconds[name]`.
"""

from __future__ import annotations

import importlib.util
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

# Without a terminal: a line at least this many seconds after the last one.
PLAIN_EVERY = 10.0


class Bar:
    """Progress of one loop. Without a terminal it writes lines to stdout."""

    def __init__(self, title: str, *, quiet: bool, interactive: bool) -> None:
        self.title, self.done, self.total, self.note = title, 0, 0, ""
        self._quiet = quiet
        self._started = self._last_line = time.monotonic()
        self._tqdm = None
        # tqdm comes with transformers; a command that needs torch alone writes lines without it
        if interactive and not quiet and importlib.util.find_spec("tqdm") is not None:
            from tqdm import tqdm

            self._tqdm = tqdm(desc=title, file=sys.stderr, dynamic_ncols=True, leave=True)

    def update(self, done: int, total: int, note: str = "") -> None:
        """`done` steps of the total are over; an empty note keeps the one shown."""
        step, self.done, self.total = done - self.done, done, total
        self.note = note or self.note
        if self._tqdm is not None:
            self._tqdm.total = total
            if note:
                self._tqdm.set_postfix_str(note, refresh=False)
            self._tqdm.update(step)
        elif not self._quiet and time.monotonic() - self._last_line >= PLAIN_EVERY:
            self._line()

    def close(self) -> None:
        if self._tqdm is not None:
            self._tqdm.close()
        elif not self._quiet:
            self._line()

    def _line(self) -> None:
        self._last_line = time.monotonic()
        share = 100 * self.done // max(1, self.total)
        note = f", {self.note}" if self.note else ""
        seconds = self._last_line - self._started
        print(f"{self.title}: {self.done}/{self.total} ({share} %), {seconds:.0f} s{note}", flush=True)


class Console:
    def __init__(self, *, quiet: bool = False) -> None:
        self.quiet = quiet
        self.interactive = sys.stderr.isatty()
        self.seconds: dict[str, float] = {}

    def say(self, text: str = "") -> None:
        if not self.quiet:
            print(text, flush=True)

    @contextmanager
    def bar(self, title: str) -> Iterator[Bar]:
        bar = Bar(title, quiet=self.quiet, interactive=self.interactive)
        try:
            yield bar
        finally:
            bar.close()

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        started = time.monotonic()
        try:
            yield
        finally:
            self.seconds[name] = self.seconds.get(name, 0.0) + time.monotonic() - started
