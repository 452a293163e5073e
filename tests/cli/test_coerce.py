"""Values of settings are brought to the declared type, or refused in words."""

from __future__ import annotations

import enum
from typing import Any, Literal

import pytest

from amopo.cli.coerce import coerce


class Colour(enum.Enum):
    RED = "red"
    BLUE = "blue"


@pytest.mark.parametrize(
    ("value", "hint", "expected"),
    [
        ("3", int, 3),
        ("1e3", int, 1000),
        ("9007199254740993", int, 9007199254740993),
        (9007199254740993, int, 9007199254740993),
        ("5e-5", float, 5e-5),  # YAML reads this as text
        (1, float, 1.0),
        ("yes", bool, True),
        ("0", bool, False),
        (False, bool, False),
        ("abc", str, "abc"),
        (7, str, "7"),
        ("a, b,c", list[str], ["a", "b", "c"]),
        ("1,2.5", list[float], [1.0, 2.5]),
        ([1, 2], list[float], [1.0, 2.0]),
        ("{a: 1}", dict, {"a": 1}),
        ({"a": 1}, dict, {"a": 1}),
        ("none", int | None, None),
        (None, str | None, None),
        ("4", int | None, 4),
        ("0.5", int | float, 0.5),
        ("4", int | float, 4),
        (True, bool | str | None, True),
        ("runs/x", bool | str | None, "runs/x"),
        ("a=1:6", dict | str | None, "a=1:6"),
        ({"a": [1, 6]}, dict | str | None, {"a": [1, 6]}),
        ("red", Colour, "red"),
        ("two", Literal["one", "two"], "two"),
        ("2", Literal[1, 2], 2),
        ("anything", Any, "anything"),
    ],
)
def test_a_value_becomes_what_is_declared(value, hint, expected):
    result = coerce(value, hint)
    assert result == expected and type(result) is type(expected)


@pytest.mark.parametrize(
    ("value", "hint", "message"),
    [
        ("abc", int, "a whole number is needed, not 'abc'"),
        ("1.5", int, "a whole number is needed, not '1.5'"),
        (True, int, "a whole number is needed, not True"),
        ("abc", float, "a number is needed, not 'abc'"),
        ("perhaps", bool, "true or false is needed, not 'perhaps'"),
        ([1], str, r"text is needed, not \[1\]"),
        (True, str, "text is needed, not True"),
        ("1,x", list[float], "a number is needed, not 'x'"),
        (3, list[str], "a list .* is needed, not 3"),
        ("text", dict, "a mapping .* is needed"),
        ("{a: [", dict, "is not a mapping"),
        ("green", Colour, "'green' is not one of red, blue"),
        ("three", Literal["one", "two"], "'three' is not one of one, two"),
        ("abc", int | None, "a whole number is needed"),
    ],
)
def test_a_value_of_the_wrong_kind_is_refused(value, hint, message):
    with pytest.raises(ValueError, match=message):
        coerce(value, hint)
