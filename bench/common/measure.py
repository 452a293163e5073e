"""Times and memory: rotating rounds in one process, CUDA events, peak bytes beyond what was there before.

`race(entrants)` runs one round of each entrant after the other and starts each round one place further on, so that slow
drifts (clocks, heat, other processes) fall on all alike. A round is: set up, synchronise, run, synchronise. On CUDA the
time is between two events around the call, and the L2 cache is overwritten before it. An entrant that raises is out of
the race and keeps its message; the others go on.

pytest-benchmark shows these times too: its tests replay them on `REPLAY`, a clock that only moves when it is told to.
"""

from __future__ import annotations

import gc
import statistics
import threading
import time
import weakref
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

_FLUSH_BYTES = 256 << 20


class ReplayClock:
    """A timer for pytest-benchmark that moves by `advance`, and by a nanosecond per look.

    The nanosecond is for pytest-benchmark, which waits for a clock that stands still to learn its precision.
    """

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        self.now += 1e-9
        return self.now

    def advance(self, seconds: float) -> None:
        self.now += seconds


REPLAY = ReplayClock()


@dataclass
class Entrant:
    """One function in a race, and what was measured of it; `problem` says why it has no times."""

    name: str
    function: Callable[[], object] | None
    setup: Callable[[], object] | None = None  # before each round, not on the clock
    times: list[float] = field(default_factory=list)
    problem: str | None = None
    extra: dict = field(default_factory=dict)  # what stands beside the times: case, device, versions, errors, bytes

    def release(self) -> None:
        """Let go of the functions and of the tensors they hold; the times stay."""
        self.function = self.setup = None

    def fail(self, error: Exception) -> None:
        """Out of the race, without the rounds it has: they are of something that does not run."""
        self.problem = f"failed: {message_of(error)}"
        self.times.clear()
        self.release()

    def stats(self) -> dict[str, float | int]:
        times = sorted(self.times)
        spread = statistics.quantiles(times, n=4) if len(times) > 1 else [times[0]] * 3
        return {
            "median": statistics.median(times),
            "min": times[0],
            "max": times[-1],
            "iqr": spread[2] - spread[0],
            "rounds": len(times),
        }


def message_of(error: BaseException) -> str:
    """Type and first line of an exception, in a few words, whatever it holds: assertions often hold nothing."""
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0][:200]}" if lines else repr(error)[:200]


def release_memory(device: torch.device) -> None:
    """Give back what a failure left: its traceback held tensors, and the allocator holds their blocks."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()


def synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def timed(function: Callable[[], object], device: torch.device, setup: Callable[[], object] | None = None) -> float:
    """Seconds of one call: between CUDA events, or by the host's clock."""
    if setup is not None:
        setup()
    if device.type != "cuda":
        start = time.perf_counter()
        result = function()
        stop = time.perf_counter()
        del result
        return stop - start
    torch.empty(_FLUSH_BYTES, dtype=torch.int8, device=device).zero_()
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    torch.cuda.synchronize(device)
    begin.record()
    result = function()
    end.record()
    torch.cuda.synchronize(device)
    del result
    return begin.elapsed_time(end) / 1e3


def race(
    entrants: list[Entrant],
    device: torch.device,
    *,
    seconds: float,
    min_rounds: int,
    max_rounds: int,
    after_rotation: Callable[[], None] = lambda: None,
) -> None:
    """Fill `times` of every entrant; each runs until `seconds` are spent on it, within the two bounds.

    An entrant that raises is out: `problem` says why, its times are gone. Garbage is collected between rotations only,
    and only what was made since the race began: it is never on the clock, and cycles do not pile up.
    """
    gc.collect()
    collecting = gc.isenabled()
    gc.disable()
    gc.freeze()
    try:
        round_number = 0
        while waiting := [e for e in entrants if _goes_on(e, seconds, min_rounds, max_rounds)]:
            turn = round_number % len(waiting)
            for entrant in waiting[turn:] + waiting[:turn]:
                try:
                    entrant.times.append(timed(entrant.function, device, entrant.setup))
                except Exception as error:
                    entrant.fail(error)
                if entrant.problem is not None:  # after the handler: the exception holds the frames of the call
                    release_memory(device)
            round_number += 1
            after_rotation()
            gc.collect()
    finally:
        gc.unfreeze()
        if collecting:
            gc.enable()


def _goes_on(entrant: Entrant, seconds: float, min_rounds: int, max_rounds: int) -> bool:
    if entrant.problem is not None:
        return False
    done = len(entrant.times)
    return done < min_rounds or (done < max_rounds and sum(entrant.times) < seconds)


class AllocationWatch(TorchDispatchMode):
    """Peak bytes of storages created while it is active, from creation to release, on any device.

    Looks inside the operators of this project, which one call would otherwise hide. What an operation of PyTorch takes
    and frees inside itself does not show; the resident set, measured beside it, shows that too.
    """

    def __init__(self) -> None:
        super().__init__()
        from amopo_kernels.head_op import linear_logprobs_backward_op, linear_logprobs_op

        self._inside = {op._opoverload: op._init_fn for op in (linear_logprobs_op, linear_logprobs_backward_op)}
        self._seen: weakref.WeakSet = weakref.WeakSet()
        self.live = self.peak = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        # What goes in was there before, unless it was made under this watch.
        for tensor in tree_leaves((args, kwargs or {})):
            if isinstance(tensor, torch.Tensor):
                self._seen.add(tensor.untyped_storage())
        implementation = self._inside.get(func)
        if implementation is not None:
            with self:
                return implementation(*args, **(kwargs or {}))
        result = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            if isinstance(tensor, torch.Tensor):
                self._count(tensor)
        return result

    def _count(self, tensor: torch.Tensor) -> None:
        storage = tensor.untyped_storage()
        if storage in self._seen:
            return
        self._seen.add(storage)
        size = storage.nbytes()
        self.live += size
        self.peak = max(self.peak, self.live)
        weakref.finalize(storage, self._release, size)

    def _release(self, size: int) -> None:
        self.live -= size


class ResidentSet:
    """Growth of the process's resident set while it is active, by looking every few milliseconds (Linux)."""

    def __init__(self, interval: float = 0.003) -> None:
        self._interval, self._stop = interval, threading.Event()
        self.peak = 0

    @staticmethod
    def now() -> int:
        """Bytes resident, or 0 where /proc does not tell."""
        try:
            with open("/proc/self/statm", encoding="ascii") as file:
                return int(file.read().split()[1]) * 4096
        except OSError:
            return 0

    def _look(self) -> None:
        while not self._stop.wait(self._interval):
            self.peak = max(self.peak, self.now() - self._before)

    def __enter__(self) -> ResidentSet:
        self._before = self.now()
        self._thread = threading.Thread(target=self._look, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_) -> None:
        self._stop.set()
        self._thread.join()
        self.peak = max(self.peak, self.now() - self._before)


def run_for_memory(
    function: Callable[[], object], device: torch.device, *, watch_tensors: bool = True
) -> tuple[object, dict[str, int]]:
    """One call's result and its peak of bytes beyond those there before: by the CUDA allocator, or dispatch, RSS."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        result = function()
        torch.cuda.synchronize(device)
        return result, {"peak_bytes": torch.cuda.max_memory_allocated(device) - before}
    with ResidentSet() as resident:
        if watch_tensors:
            with AllocationWatch() as watch:
                result = function()
            measured = {"peak_bytes": watch.peak}
        else:
            result, measured = function(), {}
    return result, {**measured, "resident_bytes": resident.peak}
