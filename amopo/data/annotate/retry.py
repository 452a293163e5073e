"""Waiting and trying again.

    Retry(endpoint, clock, max_retries=6).post(body, idempotency_key=...) -> bytes

A TransientError is tried again after base * 2**n seconds, at most `cap`, times a random factor between 0.5 and 1, so
that callers that failed together do not come back together. A server's Retry-After counts instead where it is longer,
and holds back all threads, not only the one that was told. Always the same body under the same Idempotency-Key.

After the last try GaveUp is raised. A Retry-After beyond `LONGEST_WAIT` stops the run: sitting out an hour is the
user's to decide. `Clock(stop)` is time and sleep; sleeping ends when `stop` is set, with `Interrupted`.
"""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable

from amopo.data.annotate.endpoint import Endpoint
from amopo.data.annotate.errors import AnnotationStopped, Interrupted, TransientError

LONGEST_WAIT = 900.0


class GaveUp(Exception):
    """The last try failed as well."""


class Clock:
    def __init__(self, stop: threading.Event) -> None:
        self.stop = stop

    def now(self) -> float:
        return time.monotonic()

    def sleep(self, seconds: float) -> None:
        if self.stop.wait(seconds):
            raise Interrupted


class Retry:
    def __init__(
        self,
        endpoint: Endpoint,
        clock: Clock,
        *,
        max_retries: int = 6,
        base: float = 1.0,
        cap: float = 60.0,
        draw: Callable[[], float] = random.random,
    ) -> None:
        self.endpoint, self.clock = endpoint, clock
        self.max_retries, self.base, self.cap, self._draw = max_retries, base, cap, draw
        self.retries = 0
        self._not_before = 0.0
        self._lock = threading.Lock()

    def delay(self, attempt: int) -> float:
        """Seconds after try number `attempt`, counted from 0."""
        return min(self.cap, self.base * 2.0 ** min(attempt, 60)) * (0.5 + 0.5 * self._draw())

    def post(self, body: bytes, *, idempotency_key: str) -> bytes:
        for attempt in range(self.max_retries + 1):
            self._wait_for_turn()
            try:
                return self.endpoint.post(body, idempotency_key=idempotency_key)
            except TransientError as error:
                if error.retry_after is not None and error.retry_after > LONGEST_WAIT:
                    raise AnnotationStopped(
                        f"{error}: the server asks to wait {error.retry_after:.0f} s; run the same command again then"
                    ) from None
                if attempt == self.max_retries:
                    raise GaveUp(f"{error}, {attempt + 1} tries") from None
                self._hold(error.retry_after)
                self.clock.sleep(max(self.delay(attempt), error.retry_after or 0.0))
        raise AssertionError("unreachable")

    def _hold(self, seconds: float | None) -> None:
        with self._lock:
            self.retries += 1
            if seconds is not None:
                self._not_before = max(self._not_before, self.clock.now() + seconds)

    def _wait_for_turn(self) -> None:
        # Asked again after each sleep: another thread may have been told to wait longer meanwhile.
        while (seconds := self._not_before - self.clock.now()) > 0:
            self.clock.sleep(seconds)
        if self.clock.stop.is_set():
            raise Interrupted
