"""`amopo ... | head`: nobody reads on, and nobody is told about it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
ENV = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "kernels")])}


def with_closed_reader(*command: str) -> tuple[int, str]:
    """Exit status and stderr of a command whose stdout has no reader."""
    read, write = os.pipe()
    os.close(read)
    try:
        done = subprocess.run(command, env=ENV, stdout=write, stderr=subprocess.PIPE, text=True, timeout=600)
    finally:
        os.close(write)
    return done.returncode, done.stderr


@pytest.mark.parametrize("argv", [["--help"], ["--version"], ["env"]])
def test_a_reader_that_has_gone_ends_a_command_without_a_word(argv):
    assert with_closed_reader(sys.executable, "-m", "amopo", *argv) == (141, "")


def test_in_a_shell_the_pipe_ends_well():
    script = f"for i in 1 2 3 4 5 6 7 8; do {sys.executable} -m amopo --help; done | head -n 1"
    done = subprocess.run(["bash", "-c", script], env=ENV, capture_output=True, text=True, timeout=600)
    assert done.stdout.startswith("usage: amopo") and done.stderr == ""


CONSOLE = """
import sys, time
from amopo.cli import console
console.PATIENCE = 0.05
screen = console.Console(outlives_readers={outlives})
with screen.busy("working"):
    time.sleep(0.3)
screen.say("one")
with screen.bar("bar") as bar:
    bar.update(1, 2)
print("written by another hand")
sys.stdout.flush()
sys.exit(7)
"""


def test_work_whose_result_is_in_files_goes_on_without_a_reader():
    assert with_closed_reader(sys.executable, "-c", CONSOLE.format(outlives=True)) == (7, "")


def test_other_work_ends_and_its_threads_say_nothing():
    status, err = with_closed_reader(sys.executable, "-c", CONSOLE.format(outlives=False))
    assert status != 7 and "Exception in thread" not in err and "BrokenPipeError" in err


def test_another_pipe_that_breaks_is_an_error_like_any_other(amopo, monkeypatch):
    from amopo.cli import main

    def fail(name, argv):
        raise BrokenPipeError(32, "Broken pipe", "/dev/judge")

    monkeypatch.setattr(main, "run_command", fail)
    outcome = amopo("env")
    assert outcome.status == 2 and outcome.one_line() == "/dev/judge: Broken pipe"
