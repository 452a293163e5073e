"""What a run has changed is shown truly."""

from __future__ import annotations

import io
import struct
import sys

import pytest

from amopo.report.changes import Change, Section
from amopo.report.picture import draw, margin_curves
from amopo.report.table import as_text, show

SECTION = Section("scores", [Change("correctness", 2.0, 2.5, 0.03, 0.04), Change("conciseness", 2.4, 2.1, 0.03, 0.04)])


def test_a_change_says_what_rose_fell_or_stayed():
    assert Change("a", 2.0, 2.5).direction == "rose"
    assert Change("a", 2.5, 2.0).direction == "fell"
    # equal in the digits that are shown
    assert Change("a", 2.001, 2.004).direction == "same"
    assert Change("a", 2.001, 2.004, digits=3).direction == "rose"


def test_a_difference_within_two_standard_errors_is_unclear():
    assert Change("a", 2.0, 2.5, 0.3, 0.4).error == pytest.approx(0.5)
    assert Change("a", 2.0, 2.5, 0.3, 0.4).direction == "unclear"
    assert Change("a", 2.0, 3.1, 0.3, 0.4).direction == "rose"
    assert Change("a", 3.1, 2.0, 0.3, 0.4).direction == "fell"


def test_the_relative_change_needs_a_positive_start():
    assert Change("a", 2.0, 2.5).relative == pytest.approx(0.25)
    assert Change("margin", -0.1, 0.5).relative is None
    assert Change("margin", 0.0, 0.5).relative is None
    assert Change("margin", 0.1, 0.5, signed=True).relative is None


def test_the_table_shows_both_numbers_and_marks_what_fell():
    lines = as_text([SECTION]).splitlines()
    risen = next(line for line in lines if line.startswith("correctness"))
    fallen = next(line for line in lines if line.startswith("conciseness"))
    assert risen.split() == ["correctness", "2.00", "2.50", "+0.50", "±", "0.05", "(+25%)", "rose"]
    assert fallen.split() == ["conciseness", "2.40", "2.10", "-0.30", "±", "0.05", "(-12%)", "fell"]


def test_without_a_terminal_the_table_is_plain_text():
    stream = io.StringIO()
    show([SECTION], file=stream)
    assert stream.getvalue() == as_text([SECTION])


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_on_a_terminal_without_rich_the_table_is_plain_text(monkeypatch):
    for name in [name for name in sys.modules if name.split(".")[0] == "rich"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "rich", None)
    monkeypatch.setitem(sys.modules, "rich.console", None)
    stream = Terminal()
    show([SECTION], file=stream)
    assert stream.getvalue() == as_text([SECTION])


def test_on_a_terminal_rich_shows_the_same_numbers():
    pytest.importorskip("rich")
    stream = Terminal()
    show([SECTION], file=stream)
    text = stream.getvalue()
    assert all(part in text for part in ("scores", "correctness", "2.00", "2.50", "+0.50 ± 0.05 (+25%)", "fell"))


def test_margin_curves_are_what_was_logged():
    history = [
        {"step": 5, "loss": 0.7, "rewards/margins/a": 0.1, "rewards/margins/b": 0.2},
        {"step": 10, "rewards/margins/a": 0.3, "rewards/margins/b": 0.1},
        {"step": 10, "eval_loss": 0.6},
    ]
    assert margin_curves(history, ["a", "b", "never"]) == {"a": [(5, 0.1), (10, 0.3)], "b": [(5, 0.2), (10, 0.1)]}


def png_size(path) -> tuple[int, int]:
    head = path.read_bytes()[:24]
    assert head[:8] == b"\x89PNG\r\n\x1a\n"
    return struct.unpack(">II", head[16:24])


@pytest.mark.parametrize("curves", [{}, {f"objective {i}": [(1, 0.0), (2, 0.1 * i)] for i in range(8)}])
def test_the_picture_is_a_png_whatever_was_logged(tmp_path, curves):
    pytest.importorskip("matplotlib")
    path = draw(tmp_path / "new" / "picture.png", SECTION, curves, title="a run", limits=(0, 4))
    width, height = png_size(path)
    assert width > 1000 and height > 400


def test_bars_and_lines_carry_the_numbers():
    """The bars are read back from the axes, the lines likewise."""
    figure_module = pytest.importorskip("matplotlib.figure")
    from amopo.report import picture

    bars, lines = figure_module.Figure().subplots(1, 2)
    picture._draw_bars(bars, SECTION, "score", (0, 4))
    assert sorted(patch.get_height() for patch in bars.patches) == [2.0, 2.1, 2.4, 2.5]
    # black and white: before and after differ by hatching, objectives by marker and dash
    assert {patch.get_hatch() for patch in bars.patches} == {"///", ""}
    picture._draw_curves(lines, {"a": [(1, 0.5), (2, 0.7)], "b": [(1, 0.1), (2, 0.2)]}, "margin")
    drawn = [line for line in lines.lines if line.get_label() in ("a", "b")]
    assert [list(line.get_ydata()) for line in drawn] == [[0.5, 0.7], [0.1, 0.2]]
    assert len({(line.get_marker(), line.get_linestyle()) for line in drawn}) == 2
