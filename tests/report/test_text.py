"""Text that acts is turned into text that shows."""

from __future__ import annotations

import html

from hypothesis import given
from hypothesis import strategies as st

from amopo.report.text import inert, markup, shorten


def test_escapes_are_shown_by_their_pictures():
    assert inert("\x1b[31mred\x1b[0m\x07") == "␛[31mred␛[0m␇"
    assert inert("a\tb\nc\r") == "a\tb\nc␍"
    assert inert("a\nb", line=True) == "a␊b"
    assert inert("\x9b31m\x7f") == "⟨U+009B⟩31m␡"
    # text that reads backwards would show something else than it is
    assert inert("abc\u202etxt.exe") == "abc⟨U+202E⟩txt.exe"
    assert inert("\ud800") == "�"


def test_letters_of_all_scripts_stay():
    for text in ("Grüße", "日本語", "שלום", "👩‍🔬", "$x_1$", "</script>"):
        assert inert(text) == text


@given(st.text(st.characters(exclude_categories=())))
def test_nothing_that_acts_is_left(text):
    shown = markup(text)
    assert not set(shown) & {"<", ">", '"', "'"}
    assert all(ord(character) >= 0x20 or character in "\n\t" for character in shown)
    assert html.unescape(shown) == inert(text)
    shown.encode("utf-8")
    assert "\n" not in inert(text, line=True)


def test_shortening_keeps_both_ends():
    assert shorten("abcdefghij", 5) == "ab…ij" and shorten("abc", 5) == "abc"
