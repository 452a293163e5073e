"""What the subcommands of `amopo data` share: the file, its form, the objectives and their scales."""

from __future__ import annotations

from collections.abc import Sequence

from amopo.cli.errors import UsageError
from amopo.cli.options import Option, Settings
from amopo.data.readers import FORMATS


def source_options(metavar: str = "FILE") -> list[Option]:
    """The file and how it is read."""
    return [
        Option(
            "paths",
            list[str],
            "a file (JSON lines, JSON array, parquet), or hf:owner/name[:config][:split]",
            metavar=metavar,
            positional=True,
            required=True,
        ),
        Option("format", str, f"form of the rows: {', '.join(FORMATS)}", default="auto"),
    ]


def score_options() -> list[Option]:
    """Which scores are read."""
    return [
        Option("objectives", list[str] | None, "those to read (default: all)", default=None, metavar="A,B,C"),
        Option("scales", dict | str | None, "scale of each objective", default=None, metavar="A=1:6,B=0:4"),
    ]


def check_paths(settings: Settings, *names: str) -> list[str]:
    """As many paths as names."""
    if len(settings.paths) != len(names):
        given = " ".join(settings.paths) or "nothing"
        raise UsageError(f"this needs {' '.join(names)}, but {given} was given")
    check_choice("format", settings.format, FORMATS)
    return settings.paths


def check_choice(name: str, value: str, known: Sequence[str]) -> None:
    """Raise for a value that is not among those known."""
    if value not in known:
        raise UsageError(f"--{name}: {value!r} is not one of {', '.join(known)}")
