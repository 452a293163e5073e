"""The result of a study as one JSON object: what was measured, on what, with which command.

Numbers have six digits; what is not a number is null. Values of single prompts stay in the study's own folder.

`settings` are what the study can be varied by, with a digest of the generator's tasks or of the data; `methods` is what
each method does. `fingerprint` is a digest of both: it says whether two results are of the same study, and whether one
is of the study that this version would run. Records from before it existed have none, and get none.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
import platform
import re
from collections.abc import Mapping, Sequence
from datetime import date
from pathlib import Path
from typing import Any

from amopo.cli.env import machine, versions
from amopo.study.base import Check, Results, Study
from amopo.study.methods import METHODS, Method
from amopo.study.settings import TRAINING

FILE = "study.json"


def make_record(
    study: Study, results: Results, summary: Mapping[str, Any], checks: Sequence[Check], *, command: str
) -> dict[str, Any]:
    start = next(iter(results.values()))["start"]
    return {
        "study": study.name,
        "command": command,
        "date": date.today().isoformat(),
        "machine": {"processor": processor(), **machine()},
        "versions": versions(),
        "seeds": list(results),
        "settings": settings_of(study),
        "methods": methods_of(METHODS),
        "fingerprint": fingerprint(study),
        "parameters": start["parameters"],
        "data": {str(seed): of_seed["start"]["data"] for seed, of_seed in results.items()},
        "cpu_seconds": {
            name: {
                str(seed): round(of_seed[name]["train_cpu_seconds"] + of_seed[name]["measure_cpu_seconds"])
                for seed, of_seed in results.items()
            }
            for name in next(iter(results.values()))
        },
        "summary": plain(summary),
        "checks": [dataclasses.asdict(check) for check in checks],
    }


def settings_of(study: Study) -> dict[str, Any]:
    """Every setting, and the digest of the tasks or the data."""
    return {**study.fingerprint(), "template": study.template.name, "sharing": study.sharing}


def methods_of(methods: Sequence[Method]) -> dict[str, dict[str, Any]]:
    """What each method does, by name."""
    return {method.name: {k: v for k, v in vars(method).items() if k not in ("name", "title")} for method in methods}


def fingerprint(study: Study, methods: Sequence[Method] = METHODS) -> str:
    """A digest of the generator or the data, of all settings, and of what the methods do."""
    content = {"settings": settings_of(study), "methods": methods_of(methods), "training": TRAINING}
    text = json.dumps(content, sort_keys=True)  # tuples and lists are one
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()


def write_record(folder: Path, record: Mapping[str, Any]) -> Path:
    path = folder / FILE
    # One line per list of numbers, else every interval takes four.
    text = re.sub(
        r"\[\s+([^\[\]{}\"]*?)\s+\]", lambda found: f"[{' '.join(found[1].split())}]", json.dumps(record, indent=1)
    )
    path.write_text(text + "\n", encoding="utf-8")
    return path


def plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    if isinstance(value, float):
        return float(f"{value:.6g}") if math.isfinite(value) else None
    return value


def processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()
