"""One run, as a report needs it.

Contract
--------
`load_runs(paths)` reads runs (see `amopo.report.sources`) and gives each a name of its own: the folder's, with as many
parents before it as tell it from the others. The same folder twice raises. `Run` holds the training rows in the order
of their steps (each step once, the last row wins), the evaluations on held-out pairs, settings, versions, before and
after, samples of generations, and `absent`: what the run lacks, with the reason, for the reader to be told.

`run.series(name)` -> `Series`: steps and values of one logged metric, NaN where a number is not finite.
`run.held_out(name)` likewise for evaluations, which begin at step 0 if there was one before training.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from amopo.report.changes import Change, Section
from amopo.report.measured import (
    MARGINS,
    Sample,
    dict_at,
    number,
    preferences_of,
    samples_of,
    scores_of,
    summary_of,
)
from amopo.report.sources import RunError, Sources, read_sources
from amopo.report.text import inert


@dataclass(frozen=True)
class Series:
    steps: list[float]
    values: list[float]

    def __bool__(self) -> bool:
        return any(map(math.isfinite, self.values))

    @property
    def finite(self) -> list[tuple[float, float]]:
        return [(step, value) for step, value in zip(self.steps, self.values, strict=True) if math.isfinite(value)]


@dataclass
class Run:
    name: str
    folder: Path
    objectives: list[str]
    training: list[dict[str, Any]]
    evaluations: list[dict[str, Any]]
    settings: dict[str, Any]
    versions: dict[str, Any]
    facts: dict[str, Any]
    sections: list[Section]
    scores: dict[str, Change]  # of generated responses to the plain prompt, by objective
    margins: dict[str, Change]  # on held-out pairs
    samples: list[Sample]
    last_step: int | None
    max_steps: int | None
    finished: bool
    notes: list[str]
    absent: list[str]

    def series(self, name: str) -> Series:
        return _series(self.training, name)

    def held_out(self, name: str) -> Series:
        return _series(self.evaluations, name)

    @property
    def status(self) -> str:
        if self.last_step is None:
            return "nothing logged"
        of = f" of {self.max_steps}" if self.max_steps else ""
        return f"finished at step {self.last_step}" if self.finished else f"stopped after step {self.last_step}{of}"


def load_runs(paths: Sequence[str | Path]) -> list[Run]:
    """One `Run` per path, in order. Raises `RunError` (a ValueError) in one line."""
    if not paths:
        raise RunError("there is no run to report; give at least one output directory")
    seen: dict[Path, str] = {}
    for path in paths:
        place = Path(path).resolve()
        if place in seen:
            raise RunError(f"{path} is given twice (as {seen[place]}); give each run once")
        seen[place] = str(path)
    found = [read_sources(path) for path in paths]
    names = distinct_names([sources.folder for sources in found])
    return [_run(sources, name) for sources, name in zip(found, names, strict=True)]


def distinct_names(folders: Sequence[Path]) -> list[str]:
    """The last parts of each path, as many as tell it from the others; numbered where paths are equal."""
    parts = [folder.absolute().parts for folder in folders]
    names = []
    for index, own in enumerate(parts):
        others = [other for at, other in enumerate(parts) if at != index]
        depth = 1
        while depth < len(own) and any(other[-depth:] == own[-depth:] for other in others):
            depth += 1
        same_before = parts[:index].count(own)
        name = "/".join(part.strip("/") for part in own[-depth:]) or "run"
        names.append(inert(f"{name} ({same_before + 1})" if same_before else name, line=True))
    return names


def _run(sources: Sources, name: str) -> Run:
    metrics, record = sources.metrics, sources.record
    settings = {**dict_at(record, "settings"), **dict_at(metrics, "settings")}
    training, evaluations, others, bad_rows = _split(sources.rows)
    objectives = _objectives(settings, sources.rows)
    measured = preferences_of(metrics, objectives)
    before = dict_at(metrics, "preferences", "before")
    if before:
        evaluations.insert(0, {"step": 0, **before})
    scores = scores_of(metrics, objectives)
    margins = {change.name: change for section in measured[1:] for change in section.changes}
    summary = summary_of(metrics)
    # A run of the command that ended says so, or (older ones) has measured what comes after training.
    finished = bool(metrics.get("finished", bool(metrics))) or any("train_runtime" in row for row in others)
    max_steps = sources.max_steps or number(settings.get("max_steps"))
    run = Run(
        name=name,
        folder=sources.folder,
        objectives=objectives,
        training=training,
        evaluations=_merged_per_step(evaluations),
        settings=settings,
        versions=dict_at(metrics, "versions") or dict_at(record, "versions"),
        facts={key: metrics[key] for key in ("machine", "model", "data", "imitation", "seconds") if metrics.get(key)},
        sections=summary or measured,
        scores=scores,
        margins=margins,
        samples=samples_of(metrics),
        last_step=max((int(row["step"]) for row in [*training, *others]), default=None),
        max_steps=int(max_steps) if max_steps and max_steps > 0 else None,
        finished=finished,
        notes=list(sources.notes),
        absent=[],
    )
    if bad_rows:
        run.notes.append(f"left out {bad_rows} logged rows that name no step")
    run.notes += _other_datasets(run.evaluations)
    run.notes += _not_finite(training)
    run.absent = _absent(run)
    return run


def _split(rows: Sequence[Mapping[str, Any]]) -> tuple[list[dict], list[dict], list[dict], int]:
    """Training rows, evaluations under the names that training uses, the rest; and how many rows have no step."""
    training, evaluations, others = [], [], []
    bad = 0
    for row in rows:
        step = number(row.get("step"))
        if step is None or not math.isfinite(step):
            bad += 1
            continue
        step = int(step) if step.is_integer() else step
        if "loss" in row:
            training.append({**row, "step": step})
        elif any(key.startswith("eval_") for key in row):
            evaluations.append({key.removeprefix("eval_"): value for key, value in row.items()} | {"step": step})
        else:
            others.append({**row, "step": step})
    return _once_per_step(training), evaluations, others, bad


def _once_per_step(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    by_step = {row["step"]: row for row in rows}
    return [by_step[step] for step in sorted(by_step)]


def _merged_per_step(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Several datasets may be evaluated at one step, each in a row of its own."""
    by_step: dict[Any, dict[str, Any]] = {}
    for row in rows:
        by_step.setdefault(row["step"], {}).update(row)
    return [by_step[step] for step in sorted(by_step)]


def _other_datasets(evaluations: Sequence[Mapping[str, Any]]) -> list[str]:
    """One note on evaluations of named datasets, whose metrics carry the name before their own."""
    mark = "_rewards/margins"
    names = sorted({key.removesuffix(mark) for row in evaluations for key in row if key.endswith(mark)})
    return [f"evaluations of named datasets are not drawn: {', '.join(names)}"] if names else []


def _series(rows: Sequence[Mapping[str, Any]], name: str) -> Series:
    pairs = [(row["step"], number(row[name])) for row in rows if name in row]
    pairs = [(step, value) for step, value in pairs if value is not None]
    return Series([step for step, _ in pairs], [value if math.isfinite(value) else math.nan for _, value in pairs])


def _objectives(settings: Mapping[str, Any], rows: Sequence[Mapping[str, Any]]) -> list[str]:
    named = settings.get("objectives")
    if isinstance(named, list) and named and all(isinstance(name, str) for name in named):
        return list(dict.fromkeys(named))
    logged = [key.removeprefix("eval_") for row in rows for key in row]
    return list(dict.fromkeys(key.removeprefix(MARGINS) for key in logged if key.startswith(MARGINS)))


def _not_finite(training: Sequence[Mapping[str, Any]]) -> list[str]:
    """One note on metrics that became NaN or infinite, with the first step at which one did."""
    found: dict[str, list[float]] = {}
    for row in training:
        for key, raw in row.items():
            value = number(raw)
            if value is not None and not math.isfinite(value):
                found.setdefault(key, []).append(row["step"])
    if not found:
        return []
    first = min(min(steps) for steps in found.values())
    names = sorted(found, key=lambda key: (found[key][0], key != "loss", key))
    shown = ", ".join(names[:4]) + (f" and {len(names) - 4} more" if len(names) > 4 else "")
    return [
        f"NaN or infinite from step {first}: {shown}. Such points are left out of the curves. A loss that is not "
        "finite stays so: lower the learning rate, or use bf16 instead of fp16, and run again"
    ]


def _absent(run: Run) -> list[str]:
    """What a full report has and this run does not give, and why."""
    missing = []
    if not run.training:
        missing.append("all curves: no training step was logged (was it stopped before logging_steps?)")
    else:
        for key, text in (
            ("amopo/alpha/", "weights of the objectives: not in its log"),
            ("amopo/alpha_std/", "spread of the weights: not in its log"),
            ("logps/chosen/", "log-probs of chosen and rejected responses: not in its log"),
            ("tokens_per_second", "throughput: not in its log"),
            ("amopo/peak_memory_gib", "memory: not in its log (written since this version, not on Windows)"),
        ):
            if not any(name.startswith(key) for row in run.training for name in row):
                missing.append(text)
    if not run.objectives:
        missing.append("objectives: neither settings nor log name any")
    if not run.sections:
        why = "the run did not finish" if not run.finished else "there was no held-out data, or no amopo command ran it"
        missing.append(f"before and after: {why}")
    if not run.scores:
        missing.append("generated scores: measured by amopo demo only")
    if not run.samples:
        missing.append("samples of generations: amopo train writes them with --samples, for held-out prompts")
    elif not any(sample.after is not None for sample in run.samples):
        missing.append("samples after training: the run did not finish")
    if not run.settings:
        missing.append("settings: no metrics.json and no amopo_run.json")
    if not run.versions:
        missing.append("versions: no metrics.json and no amopo_run.json")
    return missing
