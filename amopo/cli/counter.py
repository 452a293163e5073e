"""How many rows are read, while their number is not known.

`with counter(console, "rows") as count: count(done)` says nothing of what takes less than two seconds; then it moves a
count on stderr where that is a terminal, and prints a plain line now and then where it is not. `plain_to`: where plain
lines go, stdout by default. A quiet console says nothing.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TextIO

from amopo.cli.console import PLAIN_EVERY, Console

# Nobody needs to be told of what takes fewer seconds.
PATIENCE = 2.0


@contextmanager
def counter(console: Console, title: str, *, plain_to: TextIO | None = None) -> Iterator[Callable[[int], None]]:
    """Gives a function that is told how many there are so far; a smaller number begins a second pass."""
    if console.quiet:
        yield lambda done: None
        return
    count = _Bar(title) if console.interactive else _Lines(title, plain_to)
    try:
        yield count.update
    finally:
        count.close()


class _Bar:
    def __init__(self, title: str) -> None:
        from tqdm import tqdm

        # miniters=0: by time alone, so that a second pass shows at once
        shown = {"unit": "", "leave": False, "delay": PATIENCE, "miniters": 0, "dynamic_ncols": True}
        self._tqdm: Any = tqdm(desc=title, file=sys.stderr, **shown)

    def update(self, done: int) -> None:
        self._tqdm.update(done - self._tqdm.n)  # tqdm goes back, too

    def close(self) -> None:
        self._tqdm.close()


class _Lines:
    def __init__(self, title: str, file: TextIO | None) -> None:
        self._title, self._file = title, file
        self._started, self._done = time.monotonic(), 0
        self._next = self._started + PATIENCE
        self._has_line = False

    def update(self, done: int) -> None:
        self._done = done
        if time.monotonic() >= self._next:
            self._line()

    def close(self) -> None:
        if self._has_line:
            self._line()

    def _line(self) -> None:
        now = time.monotonic()
        self._next, self._has_line = now + PLAIN_EVERY, True
        print(f"{self._title}: {self._done}, {now - self._started:.0f} s", flush=True, file=self._file)
