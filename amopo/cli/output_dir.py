"""What stands in the output directory of a run that is about to begin.

Contract
--------
`check_output_dir(folder, model=..., resume=..., force=...)` raises `UsageError` for a folder that holds another run,
finished or with checkpoints of one that was stopped, unless the run resumes it or `force` replaces it; where there is
nothing to resume; and always for the folder of the model itself. Nothing is written. `clear_checkpoints(folder)` drops
the checkpoints of a replaced run: `--resume` would take the newest of them for the new run's.
"""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

from amopo.cli.errors import UsageError

METRICS_FILE = "metrics.json"


def check_output_dir(folder: Path, *, model: str, resume: bool | str = False, force: bool = False) -> None:
    if Path(model).is_dir() and folder.is_dir() and folder.samefile(model):
        raise UsageError(f"--output-dir: {folder} is the folder of the model, which would be overwritten; name another")
    if isinstance(resume, str) and not Path(resume).is_dir():
        raise UsageError(f"--resume: the folder {resume} does not exist")
    if resume is True and not checkpoints(folder):
        raise UsageError(f"--resume: {folder} holds no checkpoint to go on from; leave --resume out to begin")
    if resume or force:
        return
    ways = "--resume goes on with it, --force replaces it; or name another --output-dir"
    if _is_finished(folder / METRICS_FILE):
        raise UsageError(f"--output-dir: {folder} holds a finished run; {ways}")
    found = [path.name for path in checkpoints(folder)]
    if found:
        raise UsageError(f"--output-dir: {folder} holds a run that was stopped, with {', '.join(found)}; {ways}")


def clear_checkpoints(folder: Path) -> None:
    for path in checkpoints(folder):
        shutil.rmtree(path)


def checkpoints(folder: Path) -> list[Path]:
    """The checkpoints that amopo has written, oldest first; other folders of such names are not ours to delete."""
    from amopo.trainer.resume import RUN_FILE

    def found() -> Iterator[tuple[int, Path]]:
        for path in folder.glob("checkpoint-*") if folder.is_dir() else ():
            number = re.fullmatch(r"checkpoint-(\d+)", path.name)
            if number and (path / RUN_FILE).is_file():
                yield int(number.group(1)), path

    return [path for _, path in sorted(found())]


def _is_finished(path: Path) -> bool:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return isinstance(found, dict) and found.get("finished") is True
