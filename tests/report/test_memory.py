"""The page and the picture of a profile hold its numbers."""

from __future__ import annotations

import pytest

pytest.importorskip("matplotlib")

from amopo.report.memory import draw, write_html, write_picture

GIB = 1 << 30
RESULT = {
    "model": "<mine>", "row": {"tokens": 128}, "device": "cpu", "gpu_memory": 5 * GIB, "tokens_per_second": 10.0,
    "settings": {"engine": "single", "lora": None}, "sample": {"objectives": 2}, "resident": {"forward": 4 * GIB},
    "planned": {"forward": {"parameters": GIB, "activations": GIB}, "step": {"parameters": GIB, "optimizer": 3 * GIB}},
    "measured": {"forward": 2 * GIB, "step": 5 * GIB},
    "timeline": [(0.0, "forward", GIB), (1.0, "forward", 2 * GIB), (2.0, "step", 5 * GIB)],
}  # fmt: skip


def test_bars_stack_to_the_plan_and_stand_beside_what_was_measured():
    bars, line = draw(RESULT).axes
    tops = [patch.get_y() + patch.get_height() for patch in bars.patches]
    assert max(tops) == 5 and sorted(tops)[-2] == 4  # measured, and planned, in the step
    assert [drawn.get_ydata()[0] for drawn in bars.lines] == [5.0]  # the card's limit
    assert line.lines[0].get_ydata().tolist() == [1, 2, 5]


def test_the_page_is_complete_and_escapes_names(tmp_path):
    text = write_html(RESULT, tmp_path / "page.html").read_text(encoding="utf-8")
    assert "&lt;mine&gt;" in text and "<mine>" not in text and "data:image/png;base64," in text
    assert "-20.0 %" in text and "http" not in text
    assert write_picture(RESULT, tmp_path / "p.png").read_bytes().startswith(b"\x89PNG")
