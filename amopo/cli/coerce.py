"""Values of settings, brought to the type that is declared.

`coerce(value, hint)` takes text from a flag, or what YAML read, and returns a value of type `hint`; ValueError says
what was expected. YAML reads `5e-5` as text and `1` as an integer: both become a float where a float is declared.
Text for a list is split at commas; text for a dict is read as YAML or JSON. "none" and "null" are None where None is
allowed.
"""

from __future__ import annotations

import enum
import types
import typing
from typing import Any

_TRUE, _FALSE = ("true", "yes", "on", "1"), ("false", "no", "off", "0")
YES_OR_NO = (*_TRUE, *_FALSE)


def coerce(value: Any, hint: Any) -> Any:
    origin = typing.get_origin(hint)
    if hint is Any:
        return value
    if origin in (typing.Union, types.UnionType):
        return _coerce_union(value, typing.get_args(hint))
    if origin is typing.Literal:
        return _coerce_literal(value, typing.get_args(hint))
    if hint is list or origin is list:
        return _coerce_list(value, typing.get_args(hint))
    if hint is dict or origin is dict:
        return _coerce_dict(value)
    if isinstance(hint, type) and issubclass(hint, enum.Enum):
        choices = [str(member.value) for member in hint]
        if isinstance(value, hint) or str(value) in choices:
            return value
        raise ValueError(f"{value!r} is not one of {', '.join(choices)}")
    convert = {bool: _coerce_bool, int: _coerce_int, float: _coerce_float, str: _coerce_str}.get(hint)
    return convert(value) if convert else value


def _coerce_union(value: Any, members: tuple[Any, ...]) -> Any:
    if type(None) in members and (value is None or (isinstance(value, str) and value.lower() in ("none", "null"))):
        return None
    members = tuple(member for member in members if member is not type(None))
    for exact in members:
        if isinstance(exact, type) and type(value) is exact and not (exact is str and len(members) > 1):
            return value
    problems = []
    # text last: everything could be text
    for member in sorted(members, key=lambda member: member is str):
        try:
            return coerce(value, member)
        except ValueError as error:
            problems.append(str(error))
    raise ValueError(problems[0])


def _coerce_literal(value: Any, choices: tuple[Any, ...]) -> Any:
    for choice in choices:
        if value == choice or str(value) == str(choice):
            return choice
    raise ValueError(f"{value!r} is not one of {', '.join(map(str, choices))}")


def _coerce_list(value: Any, members: tuple[Any, ...]) -> list[Any]:
    if isinstance(value, str):
        value = [piece.strip() for piece in value.split(",") if piece.strip()]
    if not isinstance(value, list | tuple):
        raise ValueError(f"a list (a,b,c) is needed, not {value!r}")
    return [coerce(item, members[0]) for item in value] if members else list(value)


def _coerce_dict(value: Any) -> dict[Any, Any]:
    if isinstance(value, str):
        import yaml

        try:
            value = yaml.safe_load(value)
        except yaml.YAMLError:
            raise ValueError(f"{value!r} is not a mapping such as {{key: value}}") from None
    if not isinstance(value, dict):
        raise ValueError(f"a mapping such as {{key: value}} is needed, not {value!r}")
    return value


def _coerce_bool(value: Any) -> bool:
    if isinstance(value, bool):
        return value
    text = str(value).lower()
    if text in _TRUE or text in _FALSE:
        return text in _TRUE
    raise ValueError(f"true or false is needed, not {value!r}")


def _coerce_int(value: Any) -> int:
    number = _coerce_float(value, "a whole number")
    if not number.is_integer():
        raise ValueError(f"a whole number is needed, not {value!r}")
    # text of a large integer must not pass through a float
    return (
        int(value)
        if isinstance(value, int) or (isinstance(value, str) and value.strip("+-").isdigit())
        else int(number)
    )


def _coerce_float(value: Any, expected: str = "a number") -> float:
    if not isinstance(value, bool) and isinstance(value, int | float | str):
        try:
            return float(value)
        except ValueError:
            pass
    raise ValueError(f"{expected} is needed, not {value!r}")


def _coerce_str(value: Any) -> str:
    if isinstance(value, str):
        return value
    if isinstance(value, int | float) and not isinstance(value, bool):
        return str(value)
    raise ValueError(f"text is needed, not {value!r}")
