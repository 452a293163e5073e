"""Several runs side by side, in numbers.

`union_of_objectives(runs)`: all objectives, in the order in which they first come. `overview(runs)` and
`differing_settings(runs)` give tables as (header, rows) of text; `-` stands for what a run does not have.
`differences(runs)` says in sentences what keeps runs from being compared: other objectives, other held-out data.
"""

from __future__ import annotations

import json
import statistics
from collections.abc import Sequence
from typing import Any

from amopo.report.run import Run
from amopo.report.smoothing import smooth

NONE = "-"
# Settings of where and how often, which say nothing about what was trained.
PLACES = ("output_dir", "logging_dir", "run_name", "disable_tqdm", "report_to", "logging_steps", "save_steps")
Table = tuple[list[str], list[list[str]]]


def union_of_objectives(runs: Sequence[Run]) -> list[str]:
    return list(dict.fromkeys(name for run in runs for name in run.objectives))


def overview(runs: Sequence[Run]) -> Table:
    """A column per run, so that a few runs fit a phone."""
    measures = ["state", "model", "objectives", "loss", "margin", "held-out accuracy", "generated score"]
    measures += ["tokens/s", "peak memory", "training time"]
    columns = []
    for run in runs:
        model = run.facts.get("model") if isinstance(run.facts.get("model"), dict) else {}
        seconds = run.facts.get("seconds") if isinstance(run.facts.get("seconds"), dict) else {}
        accuracy = next((s.changes[-1] for s in run.sections if s.title == "held-out pairs: accuracy"), None)
        speed = [value for _, value in run.series("tokens_per_second").finite]
        memory = [value for _, value in run.series("amopo/peak_memory_gib").finite]
        columns.append(
            [
                run.status,
                _model(model) or str(run.settings.get("model_class", NONE)),
                ", ".join(run.objectives) or NONE,
                _last(run, "loss"),
                _last(run, "rewards/margins"),
                NONE if accuracy is None else f"{accuracy.before:.3f} → {accuracy.after:.3f}",
                _change(run.scores.get("mean")),
                f"{statistics.median(speed):,.0f}" if speed else NONE,
                f"{max(memory):.2f} GiB" if memory else NONE,
                _duration(seconds.get("train")),
            ]
        )
    rows = [list(row) for row in zip(measures, *columns, strict=True)]
    return ["run", *(run.name for run in runs)], rows


def differing_settings(runs: Sequence[Run]) -> Table:
    """Settings that are not the same in all runs; of runs that have settings at all."""
    names = sorted({name for run in runs for name in run.settings} - set(PLACES))
    rows = []
    for name in names:
        values = [shown(run.settings[name]) if name in run.settings else NONE for run in runs]
        if len(set(values)) > 1:
            rows.append([name, *values])
    return ["setting", *(run.name for run in runs)], rows


def versions(runs: Sequence[Run]) -> Table:
    names = list(dict.fromkeys(name for run in runs for name in run.versions))
    rows = [[name, *(str(run.versions.get(name, NONE)) for run in runs)] for name in names]
    return ["package", *(run.name for run in runs)], rows


def differences(runs: Sequence[Run]) -> list[str]:
    found = []
    union = union_of_objectives(runs)
    for run in runs:
        missing = [name for name in union if name not in run.objectives]
        if missing and run.objectives:
            found.append(f"{run.name} was not trained on {', '.join(missing)}; its curves are missing there")
    betas = {shown(run.settings["beta"]) for run in runs if "beta" in run.settings}
    if len(betas) > 1:
        found.append(f"beta differs ({', '.join(sorted(betas))}): margins scale with it, so compare accuracies instead")
    data = {_held_out(run) for run in runs} - {None}
    if len(data) > 1:
        found.append("the held-out data differ, so accuracies and margins on them are not of the same pairs")
    return found


def shown(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)


def _held_out(run: Run) -> str | None:
    data = run.facts.get("data")
    part = data.get("evaluation") if isinstance(data, dict) else None
    return None if part is None else json.dumps(part, sort_keys=True, default=str)


def _model(model: dict[str, Any]) -> str:
    parameters = model.get("parameters")
    size = f", {parameters / 1e6:,.1f}M" if isinstance(parameters, int | float) else ""
    return f"{model['name']}{size}" if "name" in model else ""


def _last(run: Run, key: str) -> str:
    values = smooth(run.series(key)).finite
    return f"{values[0][1]:.3f} → {values[-1][1]:.3f}" if values else NONE


def _change(change: Any) -> str:
    return NONE if change is None else f"{change.before:.2f} → {change.after:.2f}"


def _duration(seconds: Any) -> str:
    if not isinstance(seconds, int | float):
        return NONE
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s" if minutes else f"{rest} s"
