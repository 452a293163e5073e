"""Collectives that return when gloo has given up everything it took, for ranks that count the bytes of tensors.

Gloo's thread ends a collective first and lets go of its copies a little after: on a busy machine at any later moment of
the step. A collective makes nothing that stays (its output is there before), so each waits here until as much is held
as before it. What is still held after `PATIENCE` is held for good, and is counted.
"""

from __future__ import annotations

import functools
import sys
import time
from collections.abc import Callable
from typing import Any

import torch.distributed as dist

PATIENCE = 5.0  # seconds
COLLECTIVES = (
    "all_reduce", "all_gather", "all_gather_into_tensor", "all_gather_single", "broadcast", "reduce_scatter",
    "reduce_scatter_tensor", "reduce_scatter_single",
    "_broadcast_coalesced",  # with which DDP begins
)  # fmt: skip

_live: Callable[[], int] = lambda: 0  # noqa: E731


class Ended:
    """In the place of a work that has been waited for."""

    def wait(self, timeout: Any = None) -> bool:
        return True

    def is_completed(self) -> bool:
        return True


def count_by(live: Callable[[], int]) -> None:
    """From now on `live()` is the number of bytes held."""
    global _live
    _live = live


def settle(bytes_held: int) -> None:
    """Return when no more than that is held, or `PATIENCE` is over."""
    deadline = time.monotonic() + PATIENCE
    while _live() > bytes_held and time.monotonic() < deadline:
        time.sleep(0.001)
    if (more := _live() - bytes_held) > 0:
        print(f"{more} bytes of a collective are held after {PATIENCE} s", file=sys.stderr)


def _settled(collective: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(collective)
    def call(*args: Any, **kwargs: Any) -> Any:
        before = _live()
        work = collective(*args, **kwargs)
        ended = None
        if work is not None:
            work.wait()
            ended, work = Ended(), None  # it holds what it worked on
        settle(before)
        return ended

    return call


def install() -> None:
    """Put them in the place of torch's: before an engine is imported that takes them by name."""
    for name in COLLECTIVES:
        if (collective := getattr(dist, name, None)) is not None:  # some are of newer versions
            setattr(dist, name, _settled(collective))
