"""How a request to a judge can fail, by what to do next.

    TransientError    try the same request again, after `retry_after` seconds where the server named them
    RefusedError      this request will not be answered; go on with the others
    AnnotationStopped no request will be answered; stop, and say what to do

Messages hold no control characters, which could move a terminal's cursor, and no API key: `printable` and the endpoint
see to that.
"""

from __future__ import annotations


class AnnotationStopped(Exception):
    """The run cannot go on. What was answered is in the journal."""


class TransientError(Exception):
    def __init__(self, message: str, *, retry_after: float | None = None) -> None:
        super().__init__(message)
        self.retry_after = retry_after


class RefusedError(Exception):
    """The server will not answer this request, now or later."""


class Interrupted(Exception):
    """The run was asked to stop while this request waited for its turn."""


def printable(text: str, limit: int = 300) -> str:
    """Foreign text on one line, without control characters, cut to a length."""
    line = " ".join("".join(c if c.isprintable() else " " for c in text).split())
    return line if len(line) <= limit else line[:limit] + " ..."
