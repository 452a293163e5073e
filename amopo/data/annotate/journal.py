"""Every reply of the judge, on disk before the next one is asked for.

    with Journal(folder) as journal:                 takes the folder's lock, makes what is absent
        journal.state(key) -> State                  score, or what was tried so far
        journal.answered(key, ask=1, score=3.0, ...)
        journal.unreadable(key, ask=1, why=..., text=..., ...)
        journal.refused(key, ask=1, why=...)

`answers.jsonl` is append-only. One line per reply, written with one call and synced (fsync) before the method returns:
a process that is killed, or a machine that loses power, loses nothing that was recorded. The first line holds the
secret that the prompts' marks are made from. A line that was cut off by a crash is skipped and counted in
`broken_lines`; its reply is asked for again. The file is the cache as well: keys name contents, so runs over other
files, and of other objectives, may share a folder.

`lock` keeps a second process out (flock: the kernel frees it when the process dies, however it dies). `Journal.peek`
reads without it and never writes. In memory: a key and a score per answer, about 200 bytes each.
"""

from __future__ import annotations

import json
import os
import secrets
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Any

from amopo.data.schema import DataError, is_finite_number

FORMAT = 1
# A reply that could not be read is shown to the judge when it is asked again; nobody needs more of it.
LONGEST_TEXT = 2000


@dataclass(frozen=True)
class State:
    """What is known of a question. `asks`: replies so far that were of no use; `why`: what was wrong with the last one.

    `unreadable` holds (text, why) of the last reply that had a text, which the next request shows to the judge.
    """

    score: float | None = None
    asks: int = 0
    refused: bool = False
    why: str = ""
    unreadable: tuple[str, str] | None = None


_NOTHING = State()


class Journal:
    def __init__(self, folder: str | PathLike[str]) -> None:
        self.folder = Path(folder)
        self.path = self.folder / "answers.jsonl"
        self.secret = ""
        self.broken_lines = 0
        self.tokens = (0, 0)  # prompt and completion, of all replies ever recorded
        self._scores: dict[bytes, float] = {}
        self._open: dict[bytes, State] = {}
        self._file = self._lock_file = -1
        self._writing = threading.Lock()

    @classmethod
    def peek(cls, folder: str | PathLike[str]) -> Journal:
        """What is there now, for reading only. An absent journal is an empty one."""
        journal = cls(folder)
        journal._load()
        return journal

    def __enter__(self) -> Journal:
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            self._take_lock()
            self._file = os.open(self.path, os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o666)
        except OSError as error:
            self.close()
            raise DataError(
                f"the journal cannot be written ({error.strerror}); check --cache", file=self.folder
            ) from None
        try:
            self._load()
            self._end_last_line()
            if not self.secret:
                self.secret = secrets.token_hex(32)
                self._append({"journal": "amopo annotate", "format": FORMAT, "secret": self.secret})
                _sync_folder(self.folder)
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def close(self) -> None:
        with self._writing:
            for name in ("_file", "_lock_file"):
                descriptor = getattr(self, name)
                if descriptor >= 0:
                    setattr(self, name, -1)
                    os.close(descriptor)

    def __len__(self) -> int:
        """Scores in the journal."""
        return len(self._scores)

    def state(self, key: str) -> State:
        digest = bytes.fromhex(key)
        score = self._scores.get(digest)
        return State(score=score) if score is not None else self._open.get(digest, _NOTHING)

    def answered(self, key: str, *, ask: int, score: float, reason: str, tokens: tuple[int, int]) -> None:
        self._record({"key": key, "ask": ask, "score": score, "reason": reason, "tokens": list(tokens)})

    def unreadable(self, key: str, *, ask: int, why: str, text: str, tokens: tuple[int, int]) -> None:
        text = text[:LONGEST_TEXT]
        self._record({"key": key, "ask": ask, "unreadable": why, "text": text, "tokens": list(tokens)})

    def refused(self, key: str, *, ask: int, why: str) -> None:
        self._record({"key": key, "ask": ask, "refused": why})

    def _record(self, entry: Mapping[str, Any]) -> None:
        self._append(entry)
        self._apply(entry)

    def _append(self, entry: Mapping[str, Any]) -> None:
        # ASCII: half a character, which JSON can hold, has no UTF-8 form.
        line = json.dumps(entry).encode() + b"\n"
        with self._writing:
            if self._file < 0:
                raise ValueError("the journal is closed")
            while line:
                line = line[os.write(self._file, line) :]
            os.fsync(self._file)

    def _load(self) -> None:
        try:
            with open(self.path, "rb") as file:
                for number, raw in enumerate(file, start=1):
                    if raw.strip():
                        self._read_line(raw, number)
        except FileNotFoundError:
            return
        except OSError as error:
            raise DataError(f"the journal cannot be read ({error.strerror}); check --cache", file=self.path) from None

    def _read_line(self, raw: bytes, number: int) -> None:
        try:
            entry = json.loads(raw)
        except (ValueError, RecursionError):
            self.broken_lines += 1
            return
        if isinstance(entry, dict) and "journal" in entry:
            if entry.get("format") != FORMAT or not isinstance(entry.get("secret"), str):
                raise DataError(
                    "this journal was written by another version; name another folder with --cache",
                    file=self.path,
                    line=number,
                )
            self.secret = entry["secret"]
        elif not self.secret:
            raise DataError("this is no journal of amopo; name another folder with --cache", file=self.path)
        elif not _is_entry(entry):
            self.broken_lines += 1
        else:
            self._apply(entry)

    def _apply(self, entry: Mapping[str, Any]) -> None:
        digest = bytes.fromhex(entry["key"])
        with self._writing:
            prompt, completion = entry.get("tokens", (0, 0))
            self.tokens = (self.tokens[0] + prompt, self.tokens[1] + completion)
            if digest in self._scores:
                return
            if "score" in entry:
                self._scores[digest] = float(entry["score"])
                self._open.pop(digest, None)
            elif "refused" in entry:
                before = self._open.get(digest, _NOTHING).unreadable
                self._open[digest] = State(None, entry["ask"], True, entry["refused"], before)
            else:
                why, text = entry["unreadable"], entry["text"]
                before = (text, why) if text else self._open.get(digest, _NOTHING).unreadable
                self._open[digest] = State(None, entry["ask"], False, why, before)

    def _end_last_line(self) -> None:
        """Ends a line that a crash cut off, so that the next entry does not become a part of it."""
        size = os.fstat(self._file).st_size
        if size and os.pread(self._file, 1, size - 1) != b"\n":
            os.write(self._file, b"\n")

    def _take_lock(self) -> None:
        try:
            import fcntl
        except ImportError:
            raise DataError("the journal's lock needs a POSIX system (Linux, macOS, WSL)") from None
        self._lock_file = os.open(self.folder / "lock", os.O_RDWR | os.O_CREAT, 0o666)
        try:
            fcntl.flock(self._lock_file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = os.read(self._lock_file, 20).decode(errors="replace").strip()
            self.close()
            raise DataError(
                f"another run{f' (process {holder})' if holder.isdigit() else ''} writes this journal; wait for it, or "
                "name another folder with --cache",
                file=self.folder,
            ) from None
        os.ftruncate(self._lock_file, 0)
        os.write(self._lock_file, f"{os.getpid()}\n".encode())


def _is_entry(entry: object) -> bool:
    if not isinstance(entry, dict) or not isinstance(entry.get("key"), str) or len(entry["key"]) != 64:
        return False
    try:
        bytes.fromhex(entry["key"])
    except ValueError:
        return False
    if not isinstance(entry.get("ask"), int):
        return False
    tokens = entry.get("tokens", [0, 0])
    if not (isinstance(tokens, list) and len(tokens) == 2 and all(isinstance(count, int) for count in tokens)):
        return False
    if "score" in entry:
        return is_finite_number(entry["score"])
    if "refused" in entry:
        return isinstance(entry["refused"], str)
    return isinstance(entry.get("unreadable"), str) and isinstance(entry.get("text"), str)


def _sync_folder(folder: Path) -> None:
    """Makes the file's name last, too."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
