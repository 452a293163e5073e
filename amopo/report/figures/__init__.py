"""The figures of a report, one module each, in the order of the page.

Each module has `build(runs) -> Figure`: title, caption, panels, and what could not be drawn and why. A panel is one
small picture that stands alone, so that a page can set panels side by side on a screen and below each other on a phone.
"""

from __future__ import annotations

from collections.abc import Sequence

from amopo.report.figures import alpha, bars, logps, loss, margins, pairs, pareto, speed
from amopo.report.figures.panel import Figure
from amopo.report.run import Run

MODULES = (bars, margins, pairs, alpha, logps, pareto, loss, speed)


def build_figures(runs: Sequence[Run]) -> list[Figure]:
    """What there is to draw of these runs. Nothing is drawn yet."""
    return [module.build(runs) for module in MODULES]
