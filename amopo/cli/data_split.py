"""`amopo data split`: a preference file in two, by prompt.

`data.jsonl` gives `data.train.jsonl` and `data.eval.jsonl` beside it, or the files that `--train` and `--eval` name.
The prompts held out are those that `amopo train --eval-fraction` holds out with the same seed.
"""

from __future__ import annotations

from pathlib import Path

from amopo.cli.console import Console
from amopo.cli.counter import counter
from amopo.cli.data_options import check_paths, source_options
from amopo.cli.errors import UsageError
from amopo.cli.options import Option, Settings
from amopo.data.output import check_target
from amopo.data.sources.hub import PREFIX

DESCRIPTION = "Divides a preference file by prompt: one file to train on, one to evaluate on."


def options() -> list[Option]:
    return [
        *source_options(),
        Option("eval_fraction", float, "share of the prompts that is held out", default=0.1),
        Option("seed", int, "decides which", default=0),
        Option("train", str | None, "where the training rows go", default=None, metavar="FILE"),
        Option("eval", str | None, "where the evaluation rows go", default=None, metavar="FILE"),
        Option("force", bool, "replace files that exist", default=False),
    ]


def run(settings: Settings) -> None:
    from amopo.data.split_file import split_file

    console = Console(quiet=settings.quiet)
    (source,) = check_paths(settings, "FILE")
    train, evaluation = _targets(settings, source)
    for target in (train, evaluation):
        check_target(target, force=settings.force, source=source)
    if train.absolute() == evaluation.absolute():
        raise UsageError(f"--train and --eval both name {train}")
    with counter(console, "rows") as count:
        report = split_file(
            source,
            train,
            evaluation,
            eval_fraction=settings.eval_fraction,
            seed=settings.seed,
            format=settings.format,
            on_rows=count,
        )
    console.say(f"{train}: {report.train_rows} rows of {report.train_prompts} prompts")
    console.say(f"{evaluation}: {report.eval_rows} rows of {report.eval_prompts} prompts")
    for line in report.half_characters.lines():
        console.say(line)


def _targets(settings: Settings, source: str) -> tuple[Path, Path]:
    if source.startswith(PREFIX) and not (settings.train and settings.eval):
        raise UsageError(f"{source} has no folder to write to; name the files with --train and --eval")
    stem = source
    for suffix in (".gz", ".jsonl", ".json", ".parquet"):
        stem = stem.removesuffix(suffix)
    return Path(settings.train or f"{stem}.train.jsonl"), Path(settings.eval or f"{stem}.eval.jsonl")
