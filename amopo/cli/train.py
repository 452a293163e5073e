"""`amopo train`: from a preference file to an aligned model.

Reads, checks, tokenises; imitates first if the model is made from scratch; trains; saves model, tokenizer,
`metrics.json`, `picture.png` and `report.html` in the output directory; shows before and after on the held-out pairs.
`--nproc N` does so on N processes (`amopo.cli.launch`), `--dry-run` says what would be done (`amopo.cli.plan`), Ctrl-C
saves a checkpoint and says how to go on (`amopo.cli.stop`).
"""

from __future__ import annotations

import contextlib
import importlib.util
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from amopo.cli.console import Console, is_main_process, quiet_libraries
from amopo.cli.launch import check, is_launched, start
from amopo.cli.models import training_dtype
from amopo.cli.options import Settings
from amopo.cli.output_dir import check_output_dir
from amopo.cli.preference_file import check_choices, read
from amopo.cli.report import report_after_run
from amopo.cli.stop import go_on, resume_command
from amopo.cli.stop_signals import terminate_like_interrupt
from amopo.cli.train_options import check_numbers, make_config, options
from amopo.ending import leave_group
from amopo.report.changes import preference_sections

if TYPE_CHECKING:
    from amopo.cli.job import Job

__all__ = ["DESCRIPTION", "options", "run"]  # what the command line asks a command for

DESCRIPTION = "Aligns a model to several objectives, from a file of scored responses."


def run(settings: Settings) -> int:
    check_choices(settings)
    check_numbers(settings)
    folder, command = Path(settings.output_dir).expanduser(), resume_command(["train", *settings.argv])
    starts_ranks = settings.nproc is not None and not is_launched()
    use_cpu = bool(settings.values.get("use_cpu"))
    if starts_ranks:
        check(settings.nproc, use_cpu=use_cpu)
    if is_main_process():
        check_output_dir(folder, model=settings.model, resume=settings.resume or False, force=settings.force)
    if starts_ranks and not settings.dry_run:
        return start(["train", *settings.argv], settings.nproc, debug=settings.debug, use_cpu=use_cpu)
    with contextlib.nullcontext() if is_launched() else terminate_like_interrupt():
        job, console = None, Console(quiet=settings.quiet, outlives_readers=not settings.dry_run)
        try:
            job = make_job(settings, command, console)
            if settings.dry_run:
                show_plan(job, settings, console)
            else:
                train(job, settings, console)
        except KeyboardInterrupt as stop:
            if stop.args:  # every rank has stopped after the same step
                leave_group()
            if stop.args or settings.dry_run:
                raise
            how = go_on(folder, command) if job is not None and job.has_begun else "nothing has been trained yet"
            raise KeyboardInterrupt(how) from None
    return 0


def make_job(settings: Settings, command: str, console: Console) -> Job:
    """Settings and data, read and checked."""
    args = make_config(settings)
    parts = {"eval_data": settings.eval_data, "eval_fraction": settings.eval_fraction, "seed": args.seed}
    with console.stage("read"), console.busy("reading") as count:
        inputs = read(settings, on_rows=count, **parts)
    for line in inputs.lines():
        console.say(line)
    quiet_libraries(settings)
    from amopo.cli.job import Imitation, Job

    return Job(
        command="train",
        model=settings.model,
        inputs=inputs,
        args=args,
        template=settings.template,
        max_prompt_length=settings.max_prompt_length,
        max_response_length=settings.max_response_length,
        dtype=training_dtype(settings.dtype, lora_r=settings.lora_r, bf16=args.bf16),
        resume=settings.resume,
        lora_r=settings.lora_r,
        lora_alpha=settings.lora_alpha,
        cache=not settings.no_cache and not settings.dry_run,
        imitation=Imitation(
            epochs=settings.imitation_epochs,
            learning_rate=settings.imitation_learning_rate,
            tokens_per_batch=settings.imitation_tokens,
            conditioned=settings.imitation_conditioned,
        ),
        samples=settings.samples,
        sample_tokens=settings.sample_tokens,
        go_on=command,
        replaces=settings.force,
    )


def train(job: Job, settings: Settings, console: Console) -> None:
    from amopo.cli.job import run_job

    metrics = run_job(job, console)
    if is_main_process():
        report(metrics, job.args.objectives, job.folder, console)
        if settings.report:
            report_after_run(job.folder, console)


def show_plan(job: Job, settings: Settings, console: Console) -> None:
    from amopo.cli.job import tokenize_for
    from amopo.cli.plan import make_plan

    with console.busy("planning"):
        plan = make_plan(
            job,
            world_size=settings.nproc or job.args.world_size,
            tokenize=lambda pairs, tokenizer: tokenize_for(job, pairs, tokenizer, console)[0],
        )
    for line in plan.lines():
        console.say(line)
    console.say(f"output: {job.folder}; nothing was written")


def report(metrics: Mapping[str, Any], objectives: Sequence[str], folder: Any, console: Console) -> None:
    from amopo.report.picture import draw, margin_curves
    from amopo.report.table import show

    preferences = metrics.get("preferences")
    if preferences is not None:
        sections = preference_sections(preferences["before"], preferences["after"], objectives)
        console.say()
        if not console.quiet:
            show(sections)
        if importlib.util.find_spec("matplotlib") is not None:
            curves = margin_curves(metrics["log_history"], objectives)
            draw(folder / "picture.png", sections[0], curves, title="amopo train", unit="accuracy", limits=(0, 1))
    console.say(f"saved in {folder}")
