"""The result of a study as one JSON object: what was measured, on what, with which command.

Numbers have six digits; what is not a number is null. Values of single prompts stay in the study's own folder.
"""

from __future__ import annotations

import dataclasses
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
        "settings": {**study.fingerprint(), "template": study.template.name, "sharing": study.sharing},
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
