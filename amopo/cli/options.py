"""Command-line flags that a YAML file may hold too.

Contract
--------
`Option(name, type, help, ...)` is one setting: the flag `--name` (dashes or underscores) and the YAML key `name`.
`options_of(dataclass)` makes one option per field; their defaults stay with the dataclass (`default is UNSET`).
`parse(command, options, argv)` -> `Settings`: `values` holds every option with a default or a given value, `given` the
names that were given. Flags win over the file named by `--config`, which is read with `yaml.safe_load`.

Types: bool, int, float, str, list[...], dict, enums, Literal and unions of these; see `amopo.cli.coerce`.
Raises `UsageError` in one line: an unknown flag or key (with close matches), a value of the wrong kind, a missing
required option, a file that is not there or is no mapping.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import sys
import typing
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn

from amopo.cli.coerce import YES_OR_NO, coerce
from amopo.cli.errors import UsageError, did_you_mean
from amopo.cli.help import help_text, is_switch


class _Unset:
    def __repr__(self) -> str:
        return "UNSET"


UNSET: Any = _Unset()
# On every command; they have no place in a configuration file.
GENERAL = ("config", "debug", "quiet")


@dataclass(frozen=True)
class Option:
    name: str
    type: Any
    help: str
    default: Any = UNSET
    metavar: str | None = None
    required: bool = False
    important: bool = True  # shown by --help; the others by --help-all
    help_default: Any = None  # for the help page, where `default` is left to a dataclass
    positional: bool = False  # a list, given without a flag

    @property
    def shown_default(self) -> Any:
        return self.help_default if self.default is UNSET else self.default

    @property
    def flag(self) -> str:
        return "--" + self.name.replace("_", "-")


@dataclass
class Settings:
    values: dict[str, Any]
    given: set[str] = field(default_factory=set)
    argv: list[str] = field(default_factory=list)  # as the command was given them

    def __getattr__(self, name: str) -> Any:
        try:
            return self.__dict__["values"][name]
        except KeyError:
            raise AttributeError(name) from None


def options_of(
    cls: type, *, important: Sequence[str] = (), exclude: Sequence[str] = (), help: Mapping[str, str] | None = None
) -> list[Option]:
    """One option per field of a dataclass, the important ones first."""
    hints = typing.get_type_hints(cls)
    found = {}
    for item in dataclasses.fields(cls):
        if not item.init or item.name in exclude or item.name in GENERAL:
            continue
        text = (help or {}).get(item.name) or item.metadata.get("help") or ""
        found[item.name] = Option(
            item.name,
            hints[item.name],
            " ".join(text.replace("%%", "%").split()),
            important=item.name in important,
            help_default=None if item.default is dataclasses.MISSING else item.default,
        )
    order = [name for name in important if name in found]
    return [found[name] for name in order] + [option for name, option in found.items() if name not in order]


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise UsageError(message)


class _ShowHelp(argparse.Action):
    def __call__(self, parser, namespace, values, option_string=None):
        sys.stdout.write(self.const())
        parser.exit()


def parse(command: str, description: str, options: Sequence[Option], argv: Sequence[str]) -> Settings:
    """The settings of one command from its flags, its configuration file and the defaults."""
    options = [*options, *_general_options()]
    by_name = {option.name: option for option in options}
    parser = _Parser(prog=f"amopo {command}", add_help=False, allow_abbrev=False)
    short = functools.partial(help_text, command, description, options, everything=False)
    full = functools.partial(help_text, command, description, options, everything=True)
    parser.add_argument("-h", "--help", action=_ShowHelp, nargs=0, const=short, default=argparse.SUPPRESS)
    parser.add_argument("--help-all", action=_ShowHelp, nargs=0, const=full, default=argparse.SUPPRESS)
    for option in (option for option in options if not option.positional):
        flags = list(dict.fromkeys([option.flag, "--" + option.name]))
        switch = {"nargs": "?", "const": True} if is_switch(option.type) else {}
        parser.add_argument(*flags, dest=option.name, default=argparse.SUPPRESS, **switch)
    named = [option for option in options if option.positional]
    words = _negatives_joined(_switches_closed(argv, options) if named else argv)
    namespace, rest = parser.parse_known_args(words)
    for argument in rest if not named else [argument for argument in rest if argument.startswith("-")]:
        _unknown_argument(argument, by_name)
    if named and rest:
        setattr(namespace, named[0].name, rest)
    flags = {name: _coerced(by_name[name], value, by_name[name].flag) for name, value in vars(namespace).items()}
    from_file = _read_config(flags["config"], by_name) if flags.get("config") else {}
    values = {option.name: option.default for option in options if option.default is not UNSET}
    settings = Settings({**values, **from_file, **flags}, {*from_file, *flags}, list(argv))
    for option in options:
        if option.required and option.name not in settings.given:
            shown = option.metavar if option.positional else option.flag
            raise UsageError(f"amopo {command} needs {shown}: {option.help}")
    return settings


def _switches_closed(argv: Sequence[str], options: Sequence[Option]) -> list[str]:
    """A switch takes the next word as its value; what is no yes or no stands for itself (`--quiet FILE`)."""
    switches = {flag for option in options if is_switch(option.type) for flag in (option.flag, "--" + option.name)}
    closed = []
    for argument, following in zip(argv, [*argv, ""][1:], strict=True):
        is_open = argument in switches and following.lower() not in YES_OR_NO
        closed.append(f"{argument}=true" if is_open else argument)
    return closed


def _negatives_joined(argv: Sequence[str]) -> list[str]:
    """`--size -80GB` as `--size=-80GB`: argparse takes it for a flag, and the option could not say what is wrong."""
    joined: list[str] = []
    for argument in argv:
        takes_it = joined and joined[-1].startswith("--") and "=" not in joined[-1]
        if takes_it and argument[:1] == "-" and argument[1:2].isdigit():
            joined[-1] += f"={argument}"
        else:
            joined.append(argument)
    return joined


def _general_options() -> list[Option]:
    return [
        Option("config", str, "YAML file with the same keys; flags win over it", metavar="FILE"),
        Option("quiet", bool, "no progress, no logs; results and errors only", default=False),
        Option("debug", bool, "show the traceback of an error (also AMOPO_DEBUG=1)", default=False),
    ]


def _coerced(option: Option, value: Any, where: str) -> Any:
    try:
        return coerce(value, option.type)
    except ValueError as error:
        raise UsageError(f"{where}: {error}") from None


def _unknown_argument(argument: str, by_name: Mapping[str, Option]) -> NoReturn:
    if not argument.startswith("-"):
        raise UsageError(f"unexpected argument {argument!r}; settings are given as --name VALUE")
    name = argument.split("=")[0]
    known = {option.flag: option for option in by_name.values()}
    raise UsageError(f"unknown flag {name}{did_you_mean(name.replace('_', '-'), known)}")


def _read_config(path: str, by_name: Mapping[str, Option]) -> dict[str, Any]:
    try:
        import yaml
    except ImportError:
        raise UsageError("--config needs PyYAML: pip install 'amopo[hf]'") from None
    file = Path(path)
    if not file.is_file():
        raise UsageError(f"--config: {path} is not a file")
    try:
        loaded = yaml.safe_load(file.read_text(encoding="utf-8"))
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = f", line {mark.line + 1}" if mark else ""
        raise UsageError(f"{path}{line}: not valid YAML ({getattr(error, 'problem', None) or error})") from None
    except UnicodeDecodeError as error:
        raise UsageError(f"{path}: not UTF-8 text ({error.reason} at byte {error.start})") from None
    if loaded is None:
        return {}
    if not isinstance(loaded, dict):
        raise UsageError(f"{path}: must hold keys with values (name: value), not {type(loaded).__name__}")
    values: dict[str, Any] = {}
    for key, value in loaded.items():
        name = str(key).replace("-", "_")
        if name not in by_name or name in GENERAL:
            known = [known for known in by_name if known not in GENERAL]
            raise UsageError(f"{path}: unknown key {key!r}{did_you_mean(name, known)}")
        if name in values:
            raise UsageError(f"{path}: {name} is given twice, with a dash and with an underscore; keep one")
        values[name] = _coerced(by_name[name], value, f"{path}: {key}")
    return values
