"""A command says that it goes on: bars on a terminal, plain lines elsewhere, nothing when quiet."""

from __future__ import annotations

import io
import re
import sys

import pytest

from amopo.cli import console as module
from amopo.cli.console import Console


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture
def clock(monkeypatch):
    """Time that passes when a test says so."""

    class Clock:
        now = 100.0

        def monotonic(self) -> float:
            return self.now

    made = Clock()
    monkeypatch.setattr(module, "time", made)
    return made


@pytest.fixture
def streams(monkeypatch):
    def make(*, terminal: bool):
        out, err = io.StringIO(), Terminal() if terminal else io.StringIO()
        monkeypatch.setattr(sys, "stdout", out)
        monkeypatch.setattr(sys, "stderr", err)
        return out, err

    return make


def test_without_a_terminal_a_bar_is_a_line_after_two_seconds_and_every_ten(clock, streams):
    out, err = streams(terminal=False)
    with Console().bar("training") as bar:
        for second in range(1, 26):
            clock.now += 1
            bar.update(second, 25, f"loss {second}")
    lines = out.getvalue().splitlines()
    assert [line.split(",")[1] for line in lines] == [" 2 s", " 12 s", " 22 s", " 25 s"]
    assert lines[0] == "training: 2/25 (8 %), 2 s, loss 2" and lines[-1].startswith("training: 25/25 (100 %)")
    assert err.getvalue() == "" and "\r" not in out.getvalue() and "\x1b" not in out.getvalue()


def test_on_a_terminal_a_bar_is_drawn_on_stderr(streams):
    out, err = streams(terminal=True)
    with Console().bar("training") as bar:
        bar.update(1, 2)
        bar.update(2, 2, "loss 0.5")
    assert "training" in err.getvalue() and "2/2" in err.getvalue() and out.getvalue() == ""


def test_work_that_takes_long_says_that_it_goes_on(monkeypatch, streams):
    monkeypatch.setattr(module, "PATIENCE", 0.01)
    monkeypatch.setattr(module, "PLAIN_EVERY", 0.01)
    out, err = streams(terminal=False)
    with Console().busy("tokenising"):
        waited = _until(lambda: out.getvalue().count("\n") >= 2)
    assert waited and err.getvalue() == ""
    lines = out.getvalue().splitlines()
    assert lines[0].startswith("tokenising ... ") and lines[-1].startswith("tokenising: ")
    assert "\r" not in out.getvalue() and "\x1b" not in out.getvalue()


def test_work_of_unknown_length_shows_how_many_rows_are_done(monkeypatch, streams):
    monkeypatch.setattr(module, "PATIENCE", 0.5)
    monkeypatch.setattr(module, "PLAIN_EVERY", 0.01)
    out, _ = streams(terminal=False)
    with Console().busy("reading") as count:
        count(1200)
        assert _until(lambda: "\n" in out.getvalue())
        count(300)
    assert re.match(r"reading \.\.\. \d+ s, 1200 rows\n", out.getvalue()) and out.getvalue().endswith("s, 300 rows\n")


def test_on_a_terminal_the_note_is_cleared_at_the_end(monkeypatch, streams):
    monkeypatch.setattr(module, "PATIENCE", 0.01)
    out, err = streams(terminal=True)
    with Console().busy("reading"):
        assert _until(lambda: "reading" in err.getvalue())
    assert err.getvalue().endswith("\r\033[K") and out.getvalue() == ""


def test_a_line_that_is_said_meanwhile_stands_alone(monkeypatch, streams):
    monkeypatch.setattr(module, "PATIENCE", 0.01)
    out, err = streams(terminal=True)
    console = Console()
    with console.busy("loading"):
        assert _until(lambda: "loading" in err.getvalue())
        console.say("model: small")
        assert re.search(r"loading \.\.\. \d+ s\r\x1b\[K", err.getvalue())
    assert out.getvalue() == "model: small\n"


def test_a_terminal_without_tqdm_gets_lines(monkeypatch, streams):
    monkeypatch.setitem(sys.modules, "tqdm", None)
    out, err = streams(terminal=True)
    with Console().bar("drawing") as bar:
        bar.update(3, 3)
    assert out.getvalue().startswith("drawing: 3/3 (100 %)") and err.getvalue() == ""


def test_work_that_is_over_soon_leaves_no_trace(streams):
    out, err = streams(terminal=False)
    with Console().busy("reading"):
        pass
    assert out.getvalue() == "" and err.getvalue() == ""


def test_an_error_ends_the_note_and_comes_through(streams):
    streams(terminal=False)
    with pytest.raises(ZeroDivisionError), Console().busy("reading"):
        raise ZeroDivisionError


@pytest.mark.parametrize("terminal", [False, True])
def test_quiet_says_nothing(monkeypatch, streams, terminal):
    monkeypatch.setattr(module, "PATIENCE", 0.0)
    out, err = streams(terminal=terminal)
    console = Console(quiet=True)
    console.say("hello")
    with console.busy("reading"), console.bar("training") as bar:
        bar.update(1, 2)
    assert out.getvalue() == "" and err.getvalue() == ""


def test_of_several_processes_only_the_first_speaks(monkeypatch, streams):
    out, _ = streams(terminal=False)
    monkeypatch.setenv("RANK", "1")
    Console().say("second")
    monkeypatch.setenv("RANK", "0")
    Console().say("first")
    assert out.getvalue() == "first\n"


def _until(condition) -> bool:
    """Waits for another thread; gives up after a while."""
    import threading

    for _ in range(1000):
        if condition():
            return True
        threading.Event().wait(0.01)
    return False
