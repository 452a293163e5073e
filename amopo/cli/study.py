"""`amopo demo --seeds N` and `amopo demo --study NAME`: several methods from the same start, over several seeds.

On tasks: AMoPO with three sources of weights, SimPO on the overall pair, and a placebo whose pairs are swapped at
random, at equal steps. On summeval: the same methods rank human-rated summaries. The settings stand in
`amopo/study/settings.py`; the seeds are 1 to N. Every result is kept as soon as there is one, so the same command goes
on where it was stopped. Into the output directory: `study.json`, `study.md` and the pictures.

What must hold is printed; if it does not, the exit status is 1.
"""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import TYPE_CHECKING, Any

from amopo.cli.console import Console, quiet_libraries
from amopo.cli.errors import CommandFailed, UsageError, did_you_mean
from amopo.cli.options import Settings

if TYPE_CHECKING:
    from amopo.study.base import Study

STUDIES = ("tasks", "summeval")
SEEDS = 3
# Seed 0 is the one that settings were tried on.
FIRST_SEED = 1


def wants_study(settings: Settings) -> bool:
    return bool({"seeds", "study", "data"} & settings.given)


def run(settings: Settings) -> None:
    study = make_study(settings)
    seeds = check_seeds(settings)
    folder = Path(settings.out if "out" in settings.given else f"runs/study-{study.name}")
    console = Console(quiet=settings.quiet)
    quiet_libraries(settings)
    from amopo.report.study_tables import as_markdown
    from amopo.study.record import make_record, write_record
    from amopo.study.runner import run_study

    folder.mkdir(parents=True, exist_ok=True)
    results = run_study(study, seeds=seeds, folder=folder, console=console)
    console.say("intervals: bootstrap over prompts")
    summary = study.summarise(results)
    checks = study.checks(summary)
    text = as_markdown(study.tables(summary))
    record = make_record(study, results, summary, checks, command=command(settings, study))
    path = write_record(folder, record)
    (folder / "study.md").write_text(text, encoding="utf-8")
    console.say()
    console.say(text)
    pictures = draw(record, study, folder)
    console.say(
        "pictures: " + (", ".join(map(str, pictures)) or "none, matplotlib is missing: pip install 'amopo[plot]'")
    )
    console.say(f"everything: {path}")
    for check in checks:
        console.say(f"{'holds' if check.holds else 'DOES NOT HOLD'}: {check.text}")
    if settings.quick:
        console.say("--quick: too small to judge a method by")
    if failed := [check.text for check in checks if not check.holds]:
        raise CommandFailed(f"{len(failed)} of {len(checks)} checks do not hold: {'; '.join(failed)}")


def make_study(settings: Settings) -> Study:
    name = settings.study if settings.study is not None else "tasks"
    if name not in STUDIES:
        raise UsageError(f"--study: {name!r} is not one of {', '.join(STUDIES)}{did_you_mean(name, STUDIES)}")
    if name == "tasks":
        if settings.data is not None:
            raise UsageError("--data: the study on tasks generates its data; leave it out, or add --study summeval")
        from amopo.study.settings import QUICK_TASKS, TASKS
        from amopo.study.tasks import TaskStudy

        return TaskStudy(QUICK_TASKS if settings.quick else TASKS)
    if settings.data is None:
        raise UsageError("--study summeval needs --data FILE: grouped JSONL of summaries with their human ratings")
    if not Path(settings.data).is_file():
        raise UsageError(f"--data: {settings.data} is not a file")
    from amopo.study.settings import QUICK_SUMMEVAL, SUMMEVAL
    from amopo.study.summeval import SummevalStudy

    return SummevalStudy(QUICK_SUMMEVAL if settings.quick else SUMMEVAL, settings.data)


def check_seeds(settings: Settings) -> list[int]:
    if "seed" in settings.given:
        raise UsageError("--seed is for a single demo; a study runs the seeds 1 to N, with --seeds N")
    count = SEEDS if settings.seeds is None else settings.seeds
    if count < 1:
        raise UsageError(f"--seeds: at least one seed is needed, not {count}")
    return list(range(FIRST_SEED, FIRST_SEED + count))


def command(settings: Settings, study: Study) -> str:
    """The command that gives this result, without this machine's folders."""
    words = ["amopo demo"]
    if settings.study is not None:
        words.append(f"--study {study.name}")
    if settings.data is not None:
        words.append(f"--data {Path(settings.data).name}")
    words.append(f"--seeds {len(check_seeds(settings))}")
    return " ".join([*words, *(["--quick"] if settings.quick else [])])


def draw(record: dict[str, Any], study: Study, folder: Path) -> list[Path]:
    if importlib.util.find_spec("matplotlib") is None:
        return []
    from amopo.report.study_plots import draw_study

    return draw_study(record, study.objectives, folder)
