"""The entry of the `amopo` command.

`main(argv)` runs one command and returns the exit status: 0, or 2 for bad input, 1 for a failure, 130 for Ctrl-C, 141
where the reader of stdout has gone (`amopo ... | head`), which is said to nobody.
An error is exactly one line on stderr; `--debug` or AMOPO_DEBUG=1 shows the traceback instead. Of several processes
each says its own, with its rank but for the first; those that `--nproc` has started leave theirs to the one that did.
A command is a module of this folder with `DESCRIPTION`, `options()` and `run(settings)`, imported when it is asked for;
one with commands of its own has `main(argv)` instead.
"""

from __future__ import annotations

import importlib
import os
import re
import sys
from collections.abc import Sequence
from typing import NoReturn

from amopo import __version__
from amopo.cli.console import drop_stdout, is_main_process, stdout_is_gone
from amopo.cli.errors import UsageError, did_you_mean, exit_status, one_line
from amopo.cli.launch import leave_failure
from amopo.cli.options import parse
from amopo.cli.stop_signals import INTERRUPTED
from amopo.ending import entry, leave_group

BROKEN_PIPE = 141  # 128 + SIGPIPE, what a shell gives for a program that the signal has ended

# command -> (module, one line for the overview)
COMMANDS: dict[str, tuple[str, str]] = {
    "train": ("amopo.cli.train", "align a model to several objectives, from a preference file"),
    "eval": ("amopo.cli.evaluate", "margins and accuracies of a model on a preference file, or its scores on tasks"),
    "data": ("amopo.cli.data", "inspect, convert, split and annotate preference data"),
    "report": ("amopo.cli.report", "one page with the figures of a run, or of several side by side"),
    "doctor": ("amopo.cli.doctor", "compare packed rows with separate forwards on a model, device and precision"),
    "memory": ("amopo.cli.memory", "what a training step takes: computed, simulated, measured"),
    "env": ("amopo.cli.env", "versions, devices, and which implementation of each operation runs"),
    "demo": ("amopo.cli.demo", "the whole way on generated tasks, in a few minutes on a CPU"),
}


def overview() -> str:
    lines = ["usage: amopo COMMAND [options]", "", "Aligns one language model to several objectives.", "", "commands:"]
    lines += [f"  {name:<8}{text}" for name, (_, text) in COMMANDS.items()]
    lines += ["", "amopo COMMAND --help shows a command's options; amopo --version the version."]
    return "\n".join(lines) + "\n"


def main(argv: Sequence[str] | None = None) -> int:
    argv = list(sys.argv[1:] if argv is None else argv)
    # Read when torch is loaded. Threads that spin while they wait make everything ten times slower as soon as another
    # process wants one of few cores (measured on 2); yielding costs a few per cent when none does.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    try:
        status = answer(argv)
        sys.stdout.flush()  # here, and not when the interpreter ends, where nothing could be done about an error
        return status
    except BrokenPipeError:
        drop_stdout()
        return BROKEN_PIPE


def run_process() -> NoReturn:
    """The `amopo` command as a process: `main()`, and the end of a rank (`amopo.ending`)."""
    entry(main)


def answer(argv: list[str]) -> int:
    argv = without_launchers_flag(argv)
    if not argv or argv[0] in ("-h", "--help", "help"):
        sys.stdout.write(overview())
        return 0
    if argv[0] in ("-V", "--version"):
        print(f"amopo {__version__}")
        return 0
    debug = "--debug" in argv or os.environ.get("AMOPO_DEBUG", "") not in ("", "0")
    try:
        status = run_command(argv[0], argv[1:])
        leave_group()
        return status
    except SystemExit as stop:  # argparse, after printing the help
        return stop.code if isinstance(stop.code, int) else 0
    except KeyboardInterrupt as stop:
        if is_main_process():  # a command that can be resumed says how
            print("amopo: interrupted" + "".join(f"; {text}" for text in stop.args), file=sys.stderr)
        return INTERRUPTED
    except Exception as error:
        if isinstance(error, BrokenPipeError) and stdout_is_gone():
            raise
        is_told = leave_failure(error)
        if debug:
            raise
        if not is_told:
            rank = "" if is_main_process() else f" on rank {os.environ['RANK']}"
            print(f"amopo: error{rank}: {one_line(error)}", file=sys.stderr)
        return exit_status(error)


def without_launchers_flag(argv: list[str]) -> list[str]:
    """Without `--local_rank=N`, which the launcher of DeepSpeed puts before the command; LOCAL_RANK says the same."""
    is_launchers = "LOCAL_RANK" in os.environ and argv and re.fullmatch(r"--local[_-]rank=\d+", argv[0])
    return argv[1:] if is_launchers else argv


def run_command(name: str, argv: Sequence[str]) -> int:
    if name not in COMMANDS:
        raise UsageError(f"unknown command {name!r}{did_you_mean(name, COMMANDS)} Commands: {', '.join(COMMANDS)}")
    module = importlib.import_module(COMMANDS[name][0])
    if hasattr(module, "SUBCOMMANDS"):
        return run_subcommand(name, module.DESCRIPTION, module.SUBCOMMANDS, argv)
    settings = parse(name, module.DESCRIPTION, module.options(), argv)
    return module.run(settings) or 0


def run_subcommand(name: str, description: str, known: dict[str, tuple[str, str]], argv: Sequence[str]) -> int:
    """`amopo NAME SUBCOMMAND ...`, for a command that has some."""
    if not argv or argv[0] in ("-h", "--help"):
        width = max(map(len, known)) + 2
        lines = [f"usage: amopo {name} COMMAND [options]", "", description, "", "commands:"]
        sys.stdout.write("\n".join([*lines, *(f"  {one:<{width}}{text}" for one, (_, text) in known.items())]) + "\n")
        return 0
    if argv[0] not in known:
        raise UsageError(
            f"amopo {name}: unknown command {argv[0]!r}{did_you_mean(argv[0], known)} Commands: {', '.join(known)}"
        )
    module = importlib.import_module(known[argv[0]][0])
    if hasattr(module, "main"):  # reads its arguments itself
        return module.main(argv[1:])
    return module.run(parse(f"{name} {argv[0]}", module.DESCRIPTION, module.options(), argv[1:])) or 0
