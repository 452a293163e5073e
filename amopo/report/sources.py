"""The files that a run leaves behind, read without trusting them.

Contract
--------
`read_sources(path)` takes an output directory, a checkpoint in one, or one of the files themselves, and returns
`Sources`: the parsed `metrics.json` (by `amopo train` and `amopo demo`), `amopo_run.json`, the rows of the log, the
file that they came from, and notes on what was odd. Rows come from `metrics.json` if it is of a finished run, else from
`amopo_log.jsonl`, which the trainer writes as it goes, else from the newest `trainer_state.json`.

A file that is not JSON or of another shape raises `RunError` with the file and what to do. A line of `amopo_log.jsonl`
that cannot be read is left out and noted: a run that was killed may have left half a line.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

METRICS_FILE, RUN_FILE, LOG_FILE, STATE_FILE = (
    "metrics.json",
    "amopo_run.json",
    "amopo_log.jsonl",
    "trainer_state.json",
)


class RunError(ValueError):
    """A run that cannot be reported; names the file and the remedy."""


@dataclass
class Sources:
    folder: Path
    metrics: dict[str, Any] = field(default_factory=dict)
    record: dict[str, Any] = field(default_factory=dict)
    rows: list[dict[str, Any]] = field(default_factory=list)
    rows_from: Path | None = None
    max_steps: int | None = None
    notes: list[str] = field(default_factory=list)


def read_sources(path: str | Path) -> Sources:
    path = Path(path)
    if not path.exists():
        raise RunError(f"{path}: there is no such file or folder; give the output directory of a run")
    if path.is_dir():
        return _from_folder(path)
    readers = {METRICS_FILE: _add_metrics, LOG_FILE: _add_log, STATE_FILE: _add_state}
    if path.name not in readers:
        raise RunError(f"{path}: not a file that a run writes; give its folder, or one of {', '.join(readers)}")
    sources = Sources(Path(os.path.abspath(path)).parent)
    readers[path.name](sources, path)
    return sources


def _from_folder(folder: Path) -> Sources:
    sources = Sources(Path(os.path.abspath(folder)))
    metrics, log, state = folder / METRICS_FILE, folder / LOG_FILE, _newest_state(folder)
    if not metrics.is_file() and not log.is_file() and state is None:
        raise RunError(
            f"{folder}: holds no {METRICS_FILE}, {LOG_FILE} or {STATE_FILE}, so no run has logged here; give the "
            "folder that amopo train or amopo demo was told to write to, or a trainer's output_dir"
        )
    if metrics.is_file():
        _add_metrics(sources, metrics)
    record = folder / RUN_FILE
    if record.is_file():
        sources.record = _mapping(_load(record), record)
    if not sources.rows and log.is_file():
        _add_log(sources, log)
    elif log.is_file():
        _compare_with_log(sources, log)
    if state is not None and (not sources.rows or sources.max_steps is None):
        _add_state(sources, state)
    return sources


def _newest_state(folder: Path) -> Path | None:
    """In the folder itself, else in the checkpoint with the highest step."""
    if (folder / STATE_FILE).is_file():
        return folder / STATE_FILE
    found = {}
    for path in folder.glob(f"checkpoint-*/{STATE_FILE}"):
        number = path.parent.name.removeprefix("checkpoint-")
        if number.isdigit():
            found[int(number)] = path
    return found[max(found)] if found else None


def _add_metrics(sources: Sources, path: Path) -> None:
    sources.metrics = _mapping(_load(path), path)
    sources.rows = _rows(sources.metrics.get("log_history", []), path)
    sources.rows_from = path


def _add_state(sources: Sources, path: Path) -> None:
    state = _mapping(_load(path), path)
    if not sources.rows:
        sources.rows, sources.rows_from = _rows(state.get("log_history", []), path), path
    steps = state.get("max_steps")
    sources.max_steps = steps if isinstance(steps, int) and steps > 0 else sources.max_steps


def _add_log(sources: Sources, path: Path) -> None:
    rows, unread = _log_rows(path)
    lines = len(rows) + len(unread)
    if unread and not rows:
        raise RunError(f"{path}: none of its {lines} lines is a JSON object; delete it, or give another run")
    sources.rows, sources.rows_from = rows, path
    if unread:
        half = unread == [lines] and " (the run was stopped while it wrote)" or ""
        shown = ", ".join(map(str, unread[:5])) + (", ..." if len(unread) > 5 else "")
        sources.notes.append(f"{path.name}: left out {len(unread)} of {lines} lines that are not JSON: {shown}{half}")


def _log_rows(path: Path) -> tuple[list[dict[str, Any]], list[int]]:
    """The rows, and the numbers of the lines that are none."""
    rows, unread = [], []
    number = 0
    # an undecodable byte spoils its line, not the file
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        if not line.strip():
            continue
        number += 1
        try:
            row = json.loads(line)
        except (json.JSONDecodeError, RecursionError):
            row = None
        if isinstance(row, dict):
            rows.append(row)
        else:
            unread.append(number)
    return rows, unread


def _compare_with_log(sources: Sources, log: Path) -> None:
    rows, _ = _log_rows(log)
    last, there = (_last_step(found) for found in (sources.rows, rows))
    if rows and last != there:
        sources.notes.append(
            f"{METRICS_FILE} ends at step {last} and {LOG_FILE} at step {there}: two runs have written into this "
            f"folder; shown is {METRICS_FILE}"
        )


def _last_step(rows: list[dict[str, Any]]) -> Any:
    return max((row["step"] for row in rows if isinstance(row.get("step"), int)), default="none")


def _load(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except UnicodeDecodeError as error:
        raise RunError(f"{path}: not UTF-8 text ({error.reason} at byte {error.start}); {_remedy(path)}") from None
    except json.JSONDecodeError as error:
        problem = "empty" if error.pos == 0 and not error.doc.strip() else f"{error.msg}, line {error.lineno}"
        raise RunError(f"{path}: not JSON ({problem}); {_remedy(path)}") from None
    except RecursionError:
        raise RunError(f"{path}: nested too deeply to be a run's; {_remedy(path)}") from None


def _mapping(value: Any, path: Path) -> dict[str, Any]:
    if not isinstance(value, Mapping):
        raise RunError(f"{path}: holds {_kind(value)} instead of a JSON object; {_remedy(path)}")
    return dict(value)


def _rows(value: Any, path: Path) -> list[dict[str, Any]]:
    if not isinstance(value, list) or not all(isinstance(row, dict) for row in value):
        raise RunError(f"{path}: log_history is not a list of JSON objects; {_remedy(path)}")
    return value


def _kind(value: Any) -> str:
    return {list: "a list", str: "text", type(None): "null"}.get(type(value), "a number")


def _remedy(path: Path) -> str:
    if path.name == METRICS_FILE and (path.parent / LOG_FILE).is_file():
        return f"move it away to have the report made from {LOG_FILE}, or run again"
    if path.name == RUN_FILE:
        return "move it away to have the report made without it"
    return "move it away to have the report made from what else there is, or run again"
