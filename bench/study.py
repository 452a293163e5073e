"""A finished study into the project: `python -m bench.study runs/study-tasks`.

Copies the study's record to bench/results/study/NAME.json, draws its pictures into docs/study/, and writes its tables
and checks between the markers of docs/study.md. Text around the markers is left as it is.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from amopo.report.study_plots import draw_study
from amopo.report.study_tables import as_markdown
from amopo.study.base import Study
from amopo.study.record import FILE
from amopo.study.settings import SUMMEVAL, TASKS
from amopo.study.summeval import SummevalStudy
from amopo.study.tasks import TaskStudy
from bench.common.markers import between

ROOT = Path(__file__).resolve().parents[1]
PICTURES = {
    "scores": "Scores per objective, every method",
    "control": "What asking for an objective does",
    "margins": "Held-out margins, every method",
}


def study_of(record: Mapping[str, Any]) -> Study:
    """The study that a record is of, to write its tables; it is not run."""
    if record["study"] == "tasks":
        return TaskStudy(TASKS)
    if record["study"] == "summeval":
        return SummevalStudy(SUMMEVAL, "")
    raise ValueError(f"a study called {record['study']!r} is not known; those are: tasks, summeval")


def section(record: Mapping[str, Any]) -> str:
    """Pictures, what must hold, and all tables, as markdown."""
    name, study = record["study"], study_of(record)
    parts = [facts(record)]
    if record["checks"]:
        lines = [
            f"- {'holds' if check['holds'] else '**does not hold**'}: {check['text']}" for check in record["checks"]
        ]
        parts.append("\n".join(["What must hold:", "", *lines]))
    parts += [f"![{title}](study/{name}-{file}.svg)" for file, title in PICTURES.items()]
    return "\n\n".join([*parts, as_markdown(study.tables(record["summary"])).strip()])


def facts(record: Mapping[str, Any]) -> str:
    machine, versions = record["machine"], record["versions"]
    threads = machine["torch threads"]
    minutes = sum(sum(by_seed.values()) for by_seed in record["cpu_seconds"].values()) / 60
    return (
        f"`{record['command']}`, {record['date']}: seeds {', '.join(map(str, record['seeds']))}, "
        f"{record['parameters'] / 1e6:.2f}M parameters, {minutes:.0f} CPU minutes on {machine['processor']} "
        f"({threads} thread{'s' if threads != 1 else ''}), torch {versions['torch']}, "
        f"transformers {versions['transformers']}, amopo {versions['amopo']}."
    )


def marks(name: str) -> tuple[str, str]:
    return f"<!-- {name}: begin (python -m bench.study) -->", f"<!-- {name}: end -->"


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.study", description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, help="the --out of amopo demo --seeds")
    options = parser.parse_args(arguments)
    record = json.loads((options.folder / FILE).read_text(encoding="utf-8"))
    name, document = record["study"], ROOT / "docs" / "study.md"
    text = between(document.read_text(encoding="utf-8"), *marks(name), section(record), name=document.name)
    results = ROOT / "bench" / "results" / "study"
    results.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(options.folder / FILE, results / f"{name}.json")
    for path in draw_study(record, study_of(record).objectives, options.folder):
        pictures = ROOT / "docs" / "study"
        pictures.mkdir(exist_ok=True)
        shutil.copyfile(path, pictures / f"{name}-{path.name}")
    document.write_text(text, encoding="utf-8")
    print(f"wrote {document.relative_to(ROOT)} and {name}.json")
    return 0


if __name__ == "__main__":
    sys.exit(main())
