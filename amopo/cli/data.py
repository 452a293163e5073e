"""`amopo data`: what can be done with a preference file before training on it.

`amopo data SUBCOMMAND ...`. A subcommand is a module with `DESCRIPTION`, `options()` and `run(settings)`, as a command
is, or with `main(argv)`, and a line in `SUBCOMMANDS`.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Sequence

from amopo.cli.errors import UsageError, did_you_mean
from amopo.cli.options import parse

# subcommand -> (module, one line for the overview)
SUBCOMMANDS: dict[str, tuple[str, str]] = {
    "inspect": ("amopo.cli.data_inspect", "counts, scales, lengths, what sharing saves, ties and conflicts"),
    "convert": ("amopo.cli.data_convert", "write the same data in another form"),
    "annotate": ("amopo.cli.annotate", "scores of an objective that is missing, from a judge model"),
    "split": ("amopo.cli.data_split", "hold out prompts: one file to train on, one to evaluate on"),
}


def overview() -> str:
    lines = ["usage: amopo data SUBCOMMAND ... [options]", "", "Preference data, before training on it.", ""]
    lines += ["subcommands:"]
    lines += [f"  {name:<10}{text}" for name, (_, text) in SUBCOMMANDS.items()]
    lines += ["", "amopo data SUBCOMMAND --help shows a subcommand's options."]
    return "\n".join(lines) + "\n"


def main(argv: Sequence[str]) -> int:
    """Runs one subcommand."""
    if not argv or argv[0] in ("-h", "--help", "help"):
        sys.stdout.write(overview())
        return 0
    name = argv[0]
    if name not in SUBCOMMANDS:
        known = ", ".join(SUBCOMMANDS)
        raise UsageError(f"unknown subcommand {name!r}{did_you_mean(name, SUBCOMMANDS)} Subcommands of data: {known}")
    module = importlib.import_module(SUBCOMMANDS[name][0])
    if hasattr(module, "main"):  # reads its arguments itself
        return module.main(argv[1:])
    module.run(parse(f"data {name}", module.DESCRIPTION, module.options(), argv[1:]))
    return 0
