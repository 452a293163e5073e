"""What a command says while it runs.

`Console(quiet=...)`: `say(text)` prints a line to stdout; `bar(title)` gives a context manager whose
`update(done, total, note)` moves a progress bar on stderr when that is a terminal, and prints a plain line now and then
when it is not. `busy(title)` is for work whose end is not known: from two seconds on it shows that it goes on, for how
long, and how many rows are done if the function that it gives is told; work that is over sooner leaves no trace. Quiet
says nothing, and so does every process of a distributed run but the first. `stage(name)` adds the seconds of a block to
`seconds[name]`.

`quiet_libraries(settings)` turns off what others would say between those lines.

Nothing but lines of text goes to what is not a terminal: no carriage returns, no colours.

Where nobody reads stdout any more (`amopo train | head`), `say` raises BrokenPipeError, unless the console
`outlives_readers`: what it says is then dropped, and the work, whose result is in files, goes on.
"""

from __future__ import annotations

import os
import select
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from amopo.cli.options import Settings

# What takes longer shows that it goes on.
PATIENCE = 2.0
# Without a terminal: a line at least this many seconds after the last one; the first one sooner.
PLAIN_EVERY = 10.0


def write_line(text: str) -> None:
    print(text, flush=True)


def quiet_libraries(settings: Settings) -> None:
    """Other libraries' progress bars and notices: off, unless errors are being looked for."""
    import transformers

    if not settings.debug:
        transformers.logging.set_verbosity_error()
        transformers.logging.disable_progress_bar()


def drop_stdout() -> None:
    """Sends what is still written to stdout nowhere: nobody reads it, and every write would fail."""
    with suppress(OSError, ValueError):  # a stream without a file of its own
        target = sys.stdout.fileno()
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, target)
        os.close(nowhere)


def stdout_is_gone() -> bool:
    """Whether stdout is a pipe that nobody reads: other pipes and sockets raise BrokenPipeError too."""
    with suppress(OSError, ValueError, AttributeError):  # no file of its own; no poll on this system
        poll = select.poll()
        poll.register(sys.stdout.fileno(), 0)
        return any(event & select.POLLERR for _, event in poll.poll(0))
    return False


class Bar:
    """Progress of one loop. Without a terminal it writes lines to stdout."""

    def __init__(self, title: str, *, quiet: bool, interactive: bool, say: Callable[[str], None] = write_line) -> None:
        self._say = say
        self.title, self.done, self.total, self.note = title, 0, 0, ""
        self._quiet = quiet
        self._started = time.monotonic()
        self._last_line = self._started - (PLAIN_EVERY - PATIENCE)
        self._tqdm = None
        if interactive and not quiet:
            try:
                from tqdm import tqdm
            except ImportError:  # comes with transformers; lines say the same
                return
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
        self._say(f"{self.title}: {self.done}/{self.total} ({share} %), {seconds:.0f} s{note}")


class Busy:
    """Says from a thread of its own that something goes on."""

    def __init__(self, title: str, *, interactive: bool, say: Callable[[str], None] = write_line) -> None:
        self.title = title
        self.rows = 0
        self._say = say
        self._interactive = interactive
        self._over = threading.Event()
        self._started = time.monotonic()
        self._shown = False
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()

    def close(self) -> None:
        self._over.set()
        self._thread.join()
        self.clear()
        if self._shown and not self._interactive:
            self._say(f"{self.title}: {self._state()}")

    def count(self, rows: int) -> None:
        """So many rows are done; fewer than before begin another pass."""
        self.rows = rows

    def clear(self) -> None:
        """Takes the note off the terminal's line, for something else to be printed there."""
        if self._shown and self._interactive:
            sys.stderr.write("\r\033[K")
            sys.stderr.flush()

    def _watch(self) -> None:
        pause = PATIENCE
        while not self._over.wait(pause):
            if self._interactive:
                self._shown = True  # first, so that whoever prints a line meanwhile clears the note
                sys.stderr.write(f"\r\033[K{self.title} ... {self._state()}")
                sys.stderr.flush()
            else:
                try:
                    self._say(f"{self.title} ... {self._state()}")
                except BrokenPipeError:
                    return  # the next line of the main thread finds out
                self._shown = True
            pause = 1.0 if self._interactive else PLAIN_EVERY

    def _state(self) -> str:
        seconds = f"{time.monotonic() - self._started:.0f} s"
        return f"{seconds}, {self.rows} rows" if self.rows else seconds


def is_main_process() -> bool:
    """Under torchrun and the like, whether this is the process that speaks and writes."""
    return os.environ.get("RANK", "0") in ("", "0")


class Console:
    def __init__(self, *, quiet: bool = False, outlives_readers: bool = False) -> None:
        self._outlives_readers = outlives_readers
        self.quiet = quiet or not is_main_process()
        self.interactive = sys.stderr.isatty()
        self.seconds: dict[str, float] = {}
        self._busy: Busy | None = None

    def say(self, text: str = "") -> None:
        if not self.quiet:
            if self._busy is not None:
                self._busy.clear()
            self._write(text)

    def _write(self, text: str) -> None:
        try:
            write_line(text)
        except BrokenPipeError:
            if not self._outlives_readers:
                raise
            drop_stdout()

    @contextmanager
    def bar(self, title: str) -> Iterator[Bar]:
        bar = Bar(title, quiet=self.quiet, interactive=self.interactive, say=self._write)
        try:
            yield bar
        finally:
            bar.close()

    @contextmanager
    def busy(self, title: str) -> Iterator[Callable[[int], None]]:
        if self.quiet:
            yield lambda rows: None
            return
        outer, self._busy = self._busy, Busy(title, interactive=self.interactive, say=self._write)
        try:
            yield self._busy.count
        finally:
            self._busy.close()
            self._busy = outer

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        started = time.monotonic()
        try:
            yield
        finally:
            self.seconds[name] = self.seconds.get(name, 0.0) + time.monotonic() - started
