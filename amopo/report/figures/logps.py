"""Log-probs of chosen and rejected responses over the steps, a panel per objective."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

from amopo.report.compare import union_of_objectives
from amopo.report.figures.curves import in_words, line, two_sided, two_sided_legend
from amopo.report.figures.panel import Figure, Legend, Panel, finish, whole_steps
from amopo.report.run import Run

SIDES = ("chosen", "rejected")
CAPTION = (
    "Sum of the log-probs of a response's tokens, mean over samples: chosen solid and filled, rejected dotted and "
    "hollow. Both may fall, and that alone is no fault. The loss sees only the difference of the two, and a model "
    "that gives less to the rejected responses takes some from the chosen ones, which are like them; the "
    "probability goes to responses that are neither. What counts is that the gap opens. Look closer when the chosen "
    "line falls by far more than the gap grows, or when the samples of generations become worse: then lower the "
    "learning rate or train for fewer steps. Both lines rising while the gap stays shut means that the model "
    "imitates and does not choose. Responses differ in length, so a chosen line that begins below the rejected one "
    "may only say that chosen responses are longer."
)


def build(runs: Sequence[Run]) -> Figure:
    panels = []
    for name in (*union_of_objectives(runs), None):
        suffix = "" if name is None else f"/{name}"
        keys = [f"logps/{side}{suffix}" for side in SIDES]
        shown = [(at, run) for at, run in enumerate(runs) if any(run.series(key) for key in keys)]
        if not shown:
            continue
        words = [in_words(f"{run.name}, {side}", run.series(key)) for _, run in shown for side, key in zip(SIDES, keys)]
        title = "mean over objectives" if name is None else name
        alt = f"Log-probs of responses over training steps. {'; '.join(words)}."
        panels.append(Panel(title, title, alt, functools.partial(_draw, shown, keys, len(runs) > 1)))
    absent = [f"{run.name}: no log-probs were logged" for run in runs if not run.series("logps/chosen")]
    return Figure("logps", "Log-probs of chosen and rejected responses", CAPTION, panels, absent)


def _draw(shown: Sequence[tuple[int, Run]], keys: Sequence[str], several: bool, axes: Any) -> Legend:
    for at, run in shown:
        for place, key in enumerate(keys):
            if series := run.series(key):
                look = two_sided(at, place)
                line(axes, series, look, index=2 * at + place, of=2 * len(shown), raw=not several)
    finish(axes, ylabel="log-prob of a response")
    whole_steps(axes)
    return two_sided_legend(shown, SIDES, several=several)
