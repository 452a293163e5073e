"""Text from models, files and users, made harmless to show.

`inert(text)` replaces what acts instead of showing: control characters (terminal escapes) by their pictures (ESC is
`␛`), marks that turn the direction of text or cannot be seen by their code (`⟨U+202E⟩`), lone surrogates, which no file
can hold, by `�`. Line breaks and tabs stay; `inert(text, line=True)` shows them too, for names. `markup(text)` is the
same, escaped for HTML, attributes included. `shorten(text, length)` keeps both ends.
"""

from __future__ import annotations

import html
from typing import Any

_KEPT = "\n\t"
# Left-to-right and right-to-left marks, embeddings, overrides and isolates; zero-width space, byte-order mark.
_UNSEEN = {0x061C, 0x200B, 0x200E, 0x200F, 0x2028, 0x2029, *range(0x202A, 0x202F), *range(0x2066, 0x206A), 0xFEFF}


def inert(text: Any, *, line: bool = False) -> str:
    text = str(text)
    if text.isascii() and text.isprintable():
        return text
    kept = "" if line else _KEPT
    return "".join(character if character in kept else _shown(character) for character in text)


def markup(text: Any, *, line: bool = False) -> str:
    return html.escape(inert(text, line=line), quote=True)


def shorten(text: str, length: int) -> str:
    if len(text) <= length:
        return text
    head = (length - 1) // 2
    return f"{text[:head]}…{text[len(text) - (length - 1 - head) :]}"


def _shown(character: str) -> str:
    code = ord(character)
    if code < 0x20:
        return chr(0x2400 + code)
    if code == 0x7F:
        return "␡"
    if 0x80 <= code < 0xA0 or code in _UNSEEN:
        return f"⟨U+{code:04X}⟩"
    if 0xD800 <= code < 0xE000 or code & 0xFFFE == 0xFFFE:
        return "�"
    return character
