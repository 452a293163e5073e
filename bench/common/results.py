"""Result files: one JSON per question and device, with medians and what was measured beside them, no raw rounds.

    {"question": ..., "runs": [{machine, versions, command, date}], "records": [{"run": 0, "key": {...}, "stats": {...},
     "info": {...}} | {"run": 0, "key": {...}, "skipped": "reason"}]}

`Recorder.put` rewrites the file at once, so that a killed run keeps what it had. A record replaces the one with the
same key (case, provider, ...); a run without records is dropped.
"""

from __future__ import annotations

import json
import math
import os
from pathlib import Path

FORMAT = 1


def load(path: Path) -> dict:
    """A result file; a ValueError names the file if it is none."""
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        raise ValueError(f"{path} is not JSON: {error}; delete it or restore it") from error
    if not isinstance(data, dict) or data.get("format") != FORMAT:
        raise ValueError(f"{path} is no benchmark result of format {FORMAT}; delete it and run the benchmark again")
    return data


def _plain(value):
    """JSON has no NaN and no infinity, and 15 digits say nothing."""
    if isinstance(value, float):
        return float(f"{value:.6g}") if math.isfinite(value) else str(value)
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    return value


class Recorder:
    """Writes records below `folder/<device>/`; without a folder it writes nothing."""

    def __init__(self, folder: Path | None, device_slug: str, run: dict) -> None:
        self.folder = None if folder is None else Path(folder) / device_slug
        self._run = run
        self._files: dict[str, dict] = {}

    def put(
        self,
        question: str,
        key: dict,
        *,
        stats: dict | None = None,
        info: dict | None = None,
        skipped: str | None = None,
    ) -> None:
        if self.folder is None:
            return
        data = self._open(question)
        key, run = _plain(key), _plain(self._run)
        if run not in data["runs"]:
            data["runs"].append(run)
        record = {"run": data["runs"].index(run), "key": key}
        record |= {"skipped": skipped} if skipped else {"stats": _plain(stats), "info": _plain(info or {})}
        data["records"] = [old for old in data["records"] if old["key"] != key] + [record]
        self._write(question, data)

    def _open(self, question: str) -> dict:
        if question not in self._files:
            path = self.folder / f"{question}.json"
            new = {"format": FORMAT, "question": question, "runs": [], "records": []}
            self._files[question] = load(path) if path.exists() else new
        return self._files[question]

    def _write(self, question: str, data: dict) -> None:
        used = sorted({record["run"] for record in data["records"]})
        data["runs"] = [data["runs"][index] for index in used]
        for record in data["records"]:
            record["run"] = used.index(record["run"])
        self.folder.mkdir(parents=True, exist_ok=True)
        path = self.folder / f"{question}.json"
        partial = path.with_suffix(".json.partial")
        partial.write_text(json.dumps(data, indent=1, sort_keys=True) + "\n", encoding="utf-8")
        os.replace(partial, path)
