"""The largest size that holds, by doubling and then bisection.

`search(holds, start, ...)` -> `Bracket`: `held` is the largest size that was seen to hold, `failed` the smallest that
was seen to fail, as far as time allowed. Sizes are whole numbers from 1; what holds at one size holds below it.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field

MOST = 1 << 20
FINE = 16  # the bracket is closed when it is no wider than a sixteenth of what holds


@dataclass
class Bracket:
    """held: 0 if not even one holds. failed: None if nothing failed. finished: the bracket is as narrow as asked."""

    held: int = 0
    failed: int | None = None
    finished: bool = False
    tries: list[int] = field(default_factory=list)


def search(
    holds: Callable[[int], bool],
    start: int,
    *,
    seconds: float = float("inf"),
    clock: Callable[[], float] = time.monotonic,
) -> Bracket:
    """Double from `start` until a size fails (halve while none holds), then bisect; no new try after `seconds`."""
    found, stop = Bracket(), clock() + seconds
    size = max(1, start)
    while size is not None and clock() < stop:
        found.tries.append(size)
        if holds(size):
            found.held = max(found.held, size)
        else:
            found.failed = size if found.failed is None else min(found.failed, size)
        size = _next(found)
    found.finished = size is None
    return found


def _next(found: Bracket) -> int | None:
    """The size to try, or None when there is nothing left to learn."""
    if found.failed is None:
        return None if found.held >= MOST else 2 * found.held
    if found.held == 0:
        return None if found.failed == 1 else found.failed // 2
    gap = found.failed - found.held
    return None if gap <= max(1, found.held // FINE) else found.held + gap // 2
