"""One JSON array of objects in a text file, read piece by piece.

`JsonArray(path).rows()` yields (number, row), the elements counted from 1. It holds a window of the text: a megabyte,
or as much as one element takes. An element that is no object goes to `fail`; text that is no JSON ends the reading,
since nothing says where the next element begins. An element of more than `LARGEST` characters counts as such.
"""

from __future__ import annotations

import io
import json
from collections.abc import Iterator
from os import PathLike
from pathlib import Path
from typing import Any

from amopo.data.sources.source import Fail, Row, Source, open_bytes, stop

CHUNK = 1 << 20  # characters
LARGEST = 1 << 26


class JsonArray(Source):
    """Elements of a JSON array."""

    def __init__(self, path: str | PathLike[str]) -> None:
        super().__init__(path)
        self._path = Path(path)

    def rows(self, fail: Fail = stop) -> Iterator[Row]:
        number = 0
        with open_bytes(self._path) as file:
            window = _Window(io.TextIOWrapper(file, encoding="utf-8-sig"))
            try:
                window.next_character()  # the "["
                while True:
                    character = window.peek()
                    if character == "]" and number == 0:
                        raise self.error("the file is empty: its JSON array has no elements")
                    if character == "]":
                        window.next_character()
                        break
                    if number and character != ",":
                        raise self.error(self._broken(window, character, "a comma or the end of the array"), number)
                    if number:
                        window.next_character()
                    number += 1
                    value = self._element(window, number)
                    if isinstance(value, dict):
                        yield number, value
                    else:
                        fail(self.error(f"each element must be a JSON object, but this is {_kind(value)}", number))
                if window.peek():
                    raise self.error("there is text after the end of the JSON array; remove it", number)
            except UnicodeDecodeError as error:
                raise self.error(f"the text after this row is not UTF-8 ({error})", number) from None

    def _broken(self, window: _Window, found: str, expected: str) -> str:
        if not found:
            return "the JSON array ends after this row without a ]; is the file complete?"
        return f"broken JSON: after this row stands {found!r} instead of {expected}; fix the file"

    def _element(self, window: _Window, number: int) -> Any:
        window.peek()
        while True:
            try:
                return window.decode()
            except json.JSONDecodeError as error:
                # Perhaps the window ends inside the element.
                if window.grow():
                    continue
                what = f"no end within {LARGEST} characters" if window.is_open else error.msg
                raise self.error(f"broken JSON ({what}); fix or remove the element", number) from None
            except (RecursionError, ValueError) as error:
                raise self.error(f"the JSON cannot be read ({error}); fix or remove the element", number) from None


class _Window:
    """A part of a text file; `at` is where reading goes on."""

    def __init__(self, file: io.TextIOWrapper) -> None:
        self._file, self._text, self._at = file, "", 0
        self._decoder = json.JSONDecoder()
        self.is_open = True  # more text may follow

    def peek(self) -> str:
        """The next character that is no space; empty at the end."""
        while True:
            while self._at < len(self._text):
                if self._text[self._at] not in " \t\r\n":
                    return self._text[self._at]
                self._at += 1
            if not self._read(CHUNK):
                return ""

    def next_character(self) -> str:
        character = self.peek()
        self._at += 1
        return character

    def decode(self) -> Any:
        value, end = self._decoder.raw_decode(self._text, self._at)
        if end == len(self._text) and self.grow():  # a number may go on
            return self.decode()
        self._at = end
        return value

    def grow(self) -> bool:
        """Twice as much text, unless there is none or the element is too long."""
        size = len(self._text) - self._at
        return size < LARGEST and self._read(max(CHUNK, size))

    def _read(self, size: int) -> bool:
        more = self._file.read(size)
        self.is_open = bool(more)
        if more:
            self._text, self._at = self._text[self._at :] + more, 0
        return self.is_open


def _kind(value: object) -> str:
    return {"list": "an array", "str": "text", "NoneType": "null", "bool": "true or false"}.get(
        type(value).__name__, "a number"
    )
