"""`amopo data TASK`: what is done to preference files. Each task is a module of this folder with `main(arguments)`."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Sequence

from amopo.cli.errors import UsageError, did_you_mean

# task -> (module, one line for the overview)
TASKS: dict[str, tuple[str, str]] = {
    "annotate": ("amopo.cli.annotate", "scores of an objective that is missing, from a judge model"),
}


def overview() -> str:
    lines = ["usage: amopo data TASK [arguments]", "", "Works on preference files.", "", "tasks:"]
    lines += [f"  {name:<10}{text}" for name, (_, text) in TASKS.items()]
    return "\n".join([*lines, "", "amopo data TASK --help shows a task's options."]) + "\n"


def main(arguments: Sequence[str]) -> int:
    if not arguments or arguments[0] in ("-h", "--help", "help"):
        sys.stdout.write(overview())
        return 0
    name = arguments[0]
    if name not in TASKS:
        raise UsageError(f"unknown task {name!r} of amopo data{did_you_mean(name, TASKS)} Tasks: {', '.join(TASKS)}")
    return importlib.import_module(TASKS[name][0]).main(arguments[1:])
