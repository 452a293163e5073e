"""What the user did wrong, in one line.

`UsageError` is for the command line itself: unknown flags and keys, values of the wrong kind, files that are not there.
`one_line(error)` turns any exception into the line that is printed; `exit_status(error)` is 2 for bad input
(UsageError, ValueError, TypeError, OSError, a missing package) and 1 for everything else, CommandFailed included.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable

BAD_INPUT = (ValueError, TypeError, OSError, ImportError)


class UsageError(ValueError):
    """The command line or the configuration file cannot be used."""


class CommandFailed(Exception):
    """The command ran, and its answer is no; the text says everything."""


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """ "; did you mean a or b?" for close matches, else an empty string."""
    close = difflib.get_close_matches(name, list(known), n=3, cutoff=0.6)
    return f"; did you mean {' or '.join(close)}?" if close else ""


def one_line(error: BaseException) -> str:
    if isinstance(error, OSError) and error.strerror and error.filename is not None:
        return f"{error.filename}: {error.strerror}"
    text = " ".join(str(error).split())
    if isinstance(error, (*BAD_INPUT, CommandFailed)) and text:
        return text
    return f"{type(error).__name__}: {text or 'no message'} (--debug shows where)"


def exit_status(error: BaseException) -> int:
    return 2 if isinstance(error, BAD_INPUT) else 1
