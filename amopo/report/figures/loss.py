"""What the optimizer saw: loss, accuracy, gradient norm and learning rate."""

from __future__ import annotations

from collections.abc import Sequence

from amopo.report.figures.panel import Figure
from amopo.report.figures.single import absent_of, panel_of
from amopo.report.run import Run

CAPTION = (
    "Loss and accuracy are means over the samples since the last log; accuracy is the share of pairs whose chosen "
    "response has the higher reward. Pale: as logged. Strong: smoothed. Chance is an accuracy of 0.5 and, with a "
    "gamma of 0, a loss of log 2 = 0.693."
)
METRICS = (
    ("loss", "loss", "loss"),
    ("rewards/accuracies", "accuracy", "share of pairs"),
    ("grad_norm", "gradient norm", "norm, before clipping"),
    ("learning_rate", "learning rate", "learning rate"),
)


def build(runs: Sequence[Run]) -> Figure:
    panels = [panel for key, title, unit in METRICS if (panel := panel_of(runs, key, title, unit)) is not None]
    return Figure("loss", "Loss, accuracy, gradient", CAPTION, panels, absent_of(runs, METRICS))
