"""The end of a process that was one of several ranks."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

# What an interpreter that is torn down prints last: a global's destructor.
PROGRAM = """
import atexit, sys, threading, time
from amopo.ending import entry, leave_group

class Last:
    def __del__(self):
        print("torn down")

last = Last()

def join():
    import torch.distributed as dist

    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    join.held = dist.group.WORLD

def main():
    atexit.register(print, "registered")
    threading.Thread(target=lambda: (time.sleep(0.3), print("thread"))).start()
    sys.stderr.write("no newline")
    {}

entry(main)
"""
ALL = ["thread", "registered"]


def run(body: str) -> tuple[int, list[str], str]:
    """(status, lines of stdout, stderr) of a process with this `main`."""
    done = subprocess.run([sys.executable, "-c", PROGRAM.format(body)], capture_output=True, text=True, timeout=600)
    return done.returncode, done.stdout.splitlines(), done.stderr


def test_a_process_alone_ends_as_python_does():
    assert run("return 3") == (3, [*ALL, "torn down"], "no newline")


@pytest.mark.parametrize("body", ["join(); leave_group(); return 3", "join(); return 3"], ids=["left", "in the group"])
def test_a_rank_ends_with_its_status_and_output_and_without_tearing_threads_of_gloo_down(body):
    assert run(body) == (3, ALL, "no newline")


@pytest.mark.skipif(not Path("/proc/self/task").is_dir(), reason="threads are read from /proc")
def test_nothing_that_held_the_group_can_wait_for_its_threads_after_a_rank_has_left_it():
    """DDP's reducer would, holding the interpreter's lock, which such a thread may need: the rank would hang."""
    body = """
    import gc, pathlib
    def threads():
        return sum("gloo_runloop" in p.read_text() for p in pathlib.Path("/proc/self/task").glob("*/comm"))
    import torch
    join()
    torch.distributed.all_reduce(torch.ones(1))  # its threads come with the first
    before = threads()
    leave_group()
    del join.held
    gc.collect()
    print(before > 0, threads() >= before)  # one may have been about to start
    return 0
"""
    status, out, err = run(body.strip())
    assert status == 0 and "True True" in out, (out, err)


def test_an_error_that_nobody_catches_is_shown_and_is_the_status_of_a_rank():
    status, out, err = run("join(); raise ValueError('what')")
    assert (status, out) == (1, ALL) and err.rstrip().endswith("ValueError: what")


@pytest.mark.parametrize("group", ["", "join(); "], ids=["alone", "a rank"])
@pytest.mark.parametrize(
    "end, status, message",
    [
        ("sys.exit(0)", 0, ""), ("sys.exit(3)", 3, ""), ("sys.exit()", 0, ""), ("return None", 0, ""),
        ("sys.exit('why')", 1, "why"), ("return 'why'", 1, "why"),
    ],
)  # fmt: skip
def test_the_status_is_what_python_makes_of_it(group, end, status, message):
    got, out, err = run(group + end)
    assert (got, out[:2]) == (status, ALL) and err == "no newline" + message + "\n" * bool(message)


def test_a_rank_that_is_interrupted_says_so():
    status, out, err = run("join(); raise KeyboardInterrupt")
    assert (status, out) == (130, ALL) and err.rstrip().endswith("KeyboardInterrupt")


def test_files_that_a_rank_has_left_open_are_written(tmp_path):
    run(f"join(); main.file = open({str(tmp_path / 'left')!r}, 'w'); main.file.write('all of it'); return 0")
    assert (tmp_path / "left").read_text() == "all of it"


def test_the_command_ends_so():
    done = subprocess.run(
        [sys.executable, "-c", "import amopo.cli.main as m; m.entry = lambda main: print(main is m.main); "
         "import runpy; runpy.run_module('amopo', run_name='__main__')"],
        capture_output=True, text=True, timeout=600,
    )  # fmt: skip
    assert done.stdout == "True\n", done.stderr
