"""What a run has logged, on disk while it runs: `amopo_log.jsonl` in the output directory.

Contract
--------
One JSON object per line: a row of the trainer's `log_history` (metrics, `step`, `epoch`). Numbers that are not finite
are written as text ("nan", "inf"), since JSON has none. A line is written whole and flushed when it is logged, so a run
that is killed leaves all rows but at most the last. A run that begins starts the file anew; one that resumes begins it
with the rows that its checkpoint holds, so that no step is in it twice. Only the main process writes.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from transformers import TrainerCallback

LOG_FILE = "amopo_log.jsonl"


class RunLog(TrainerCallback):
    """Writes each logged row."""

    def __init__(self) -> None:
        self._path: Path | None = None

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if not state.is_world_process_zero:
            return
        self._path = Path(args.output_dir) / LOG_FILE
        self._path.parent.mkdir(parents=True, exist_ok=True)
        unfinished = self._path.with_suffix(".tmp")
        unfinished.write_text("".join(as_line(row) for row in state.log_history), encoding="utf-8")
        os.replace(unfinished, self._path)

    def on_log(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        # An evaluation before training belongs to no run yet.
        if self._path is not None and state.log_history:
            with self._path.open("a", encoding="utf-8") as file:
                file.write(as_line(state.log_history[-1]))


def as_line(row: Mapping[str, Any]) -> str:
    plain = {
        name: str(value) if isinstance(value, float) and not math.isfinite(value) else value
        for name, value in row.items()
    }
    return json.dumps(plain, default=str) + "\n"
