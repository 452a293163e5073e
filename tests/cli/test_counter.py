"""How far a command is with its rows: silence, lines, or a bar."""

from __future__ import annotations

import sys

import pytest

from amopo.cli.console import Console
from amopo.cli.counter import PATIENCE, counter


class Clock:
    def __init__(self):
        self.now = 0.0

    def __call__(self):
        return self.now


@pytest.fixture
def clock(monkeypatch):
    clock = Clock()
    monkeypatch.setattr("amopo.cli.counter.time.monotonic", clock)
    monkeypatch.setattr("sys.stderr.isatty", lambda: False, raising=False)
    return clock


def test_a_counter_says_nothing_of_what_is_quick(clock, capsys):
    with counter(Console(), "rows") as count:
        count(100)
        clock.now = PATIENCE - 0.1
        count(200)
    assert capsys.readouterr().out == ""


def test_a_counter_says_how_far_it_is_when_it_takes_longer(clock, capsys):
    with counter(Console(), "rows") as count:
        clock.now = PATIENCE
        count(100)
        clock.now += 1
        count(200)
        clock.now += 9
        count(300)
        count(350)
    assert capsys.readouterr().out.splitlines() == ["rows: 100, 2 s", "rows: 300, 12 s", "rows: 350, 12 s"]


def test_a_quiet_counter_says_nothing_and_lines_can_go_elsewhere(clock, capsys):
    with counter(Console(quiet=True), "rows") as count:
        clock.now = 60
        count(100)
    assert capsys.readouterr() == ("", "")
    with counter(Console(), "rows", plain_to=sys.stderr) as count:
        clock.now = 120
        count(100)
    captured = capsys.readouterr()
    assert captured.out == "" and captured.err.startswith("rows: 100, 60 s")


def test_on_a_terminal_a_bar_follows_the_count_through_both_passes(monkeypatch):
    tqdm = pytest.importorskip("tqdm")
    bars, positions = [], []

    class Recorded(tqdm.tqdm):
        def __init__(self, **options):
            super().__init__(**{**options, "disable": False})
            bars.append(options)

        def update(self, n=1):
            shown = super().update(n)
            positions.append(self.n)
            return shown

    monkeypatch.setattr(tqdm, "tqdm", Recorded)
    console = Console()
    console.interactive = True
    with counter(console, "rows") as count:
        for done in (100, 200, 100, 250):
            count(done)
    assert positions == [100, 200, 100, 250]
    assert bars[0]["delay"] == PATIENCE and bars[0]["leave"] is False
