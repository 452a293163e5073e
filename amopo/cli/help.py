"""The help page of a command.

`help_text(command, description, options, everything=...)` lists the important options, or all of them. Long texts of
other libraries are cut to their first sentence.
"""

from __future__ import annotations

import re
import textwrap
import types
import typing
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from amopo.cli.options import Option

INDENT, WIDTH = 34, 118
_PLACEHOLDERS = {int: "N", float: "X", str: "NAME", list: "A,B,C", dict: "{...}", bool: ""}


def help_text(command: str, description: str, options: Sequence[Option], *, everything: bool) -> str:
    named = [option for option in options if option.positional]
    usage = " ".join([f"usage: amopo {command}", *(str(option.metavar) for option in named), "[options]"])
    lines = [usage, "", description, ""]
    lines += [f"{option.metavar}: {option.help}\n" for option in named]
    lines.append("options:")
    shown = [option for option in options if (everything or option.important) and not option.positional]
    for option in shown:
        lines += _lines(option)
    hidden = len(options) - len(named) - len(shown)
    if hidden:
        lines += ["", f"{hidden} more: amopo {command} --help-all"]
    return "\n".join(lines) + "\n"


def is_switch(hint: Any) -> bool:
    """True for options that may stand without a value."""
    return hint is bool or bool in typing.get_args(hint)


def _lines(option: Option) -> list[str]:
    text = re.split(r"(?<=[a-z)`])\. ", option.help)[0].rstrip(".") + _default(option)
    head = f"  {option.flag} {_placeholder(option)}".rstrip()
    wrapped = textwrap.wrap(text, WIDTH - INDENT) or [""]
    if len(head) > INDENT - 2:
        return [head, *(" " * INDENT + line for line in wrapped)]
    return [f"{head:<{INDENT}}{wrapped[0]}".rstrip(), *(" " * INDENT + line for line in wrapped[1:])]


def _default(option: Option) -> str:
    value = option.shown_default
    value = getattr(value, "value", value)  # enums
    return "" if value is None or value is False or value == "" else f" (default: {value})"


def _placeholder(option: Option) -> str:
    if option.metavar is not None:
        return option.metavar
    if is_switch(option.type):
        return ""
    hint = option.type
    if isinstance(hint, types.UnionType) or typing.get_origin(hint) is typing.Union:
        hint = next(member for member in typing.get_args(hint) if member is not type(None))
    return _PLACEHOLDERS.get(typing.get_origin(hint) or hint, "NAME")
