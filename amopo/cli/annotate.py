"""`amopo data annotate FILE OUT`: scores of a missing objective from a judge model.

Any endpoint that speaks OpenAI's chat completions will do, a local server as well as a hosted one. Each distinct
(prompt, response) is asked once; every reply is on disk, in the journal, before the next request of its thread. The
same command again goes on where a run ended, whatever ended it. `--dry-run` shows what would be asked, sends nothing.

Exit status 0 only if every response has its score (or with --allow-missing, --drop-missing), and OUT is written only
then.
"""

from __future__ import annotations

import contextlib
import json
import math
import threading
import time
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path

from amopo.cli.annotate_settings import api_key, check, make_judge, options
from amopo.cli.console import Console
from amopo.cli.errors import CommandFailed
from amopo.cli.options import Settings, parse
from amopo.data.annotate import (
    AnnotationStopped,
    Clock,
    Endpoint,
    Journal,
    Judge,
    Plan,
    Policy,
    Retry,
    Runner,
    Source,
    Summary,
    failures,
    make_plan,
    open_questions,
    write_scored,
)
from amopo.data.annotate.prompt import Question

DESCRIPTION = (
    "Scores of an objective that the data lack, from a judge model: amopo data annotate FILE OUT [options].\n"
    "The prompts and responses of FILE go to the endpoint. Run again to resume: what was answered is not asked again."
)
SHOWN_FAILURES = 5


def main(arguments: Sequence[str]) -> int:
    """Runs `amopo data annotate` with these arguments; FILE and OUT may stand before the first flag."""
    arguments = list(arguments)
    for name in ("file", "out"):
        if not arguments or arguments[0].startswith("-"):
            break
        arguments = [*arguments[1:], f"--{name}={arguments[0]}"]
    run(parse("data annotate", DESCRIPTION, options(), arguments))
    return 0


def run(settings: Settings) -> None:
    console = Console(quiet=settings.quiet)
    judge = make_judge(settings)
    check(settings)
    source = Source(
        settings.file,
        objective=judge.objective,
        scale=judge.scale,
        format=settings.format,
        existing=settings.existing,
        limit=settings.limit,
    )
    folder = Path(settings.cache or f"{settings.out}.journal")
    policy = Policy(max_asks=settings.max_asks, retry_failed=settings.retry_failed)
    if settings.dry_run:
        with console.busy("reading") as count:
            plan = make_plan(source, judge, Journal.peek(folder), policy, on_records=count)
        # Not said but shown: it is what was asked for, also under --quiet.
        _show_plan(plan, judge, settings)
        return
    endpoint = Endpoint(settings.endpoint, api_key=api_key(settings.api_key_env), timeout=settings.timeout)
    if endpoint.sends_key_in_clear:
        console.say("note: the API key goes over plain http; anyone on the way can read it")
    with contextlib.ExitStack() as stack:
        with console.busy("reading") as count:
            journal = stack.enter_context(Journal(folder))
            plan = make_plan(source, judge, journal, policy, on_records=count)
        console.say(_plan_line(plan))
        if journal.broken_lines:
            console.say(
                f"the journal {journal.path} has {journal.broken_lines} broken lines, which a crash can leave; skipped"
            )
        if plan.open:
            retry = Retry(endpoint, Clock(threading.Event()), max_retries=settings.max_retries)
            give_up_after = max(5, 2 * settings.concurrency)  # more than may fail together by chance
            runner = Runner(judge, journal, policy, retry, give_up_after=give_up_after)
            _ask(runner, open_questions(source, judge, journal, policy), plan.open, settings, console)
        _finish(source, judge, journal, settings, console)


def _ask(runner: Runner, questions: Iterator[Question], total: int, settings: Settings, console: Console) -> None:
    started = time.monotonic()

    def interrupted(summary: Summary) -> None:
        if summary.in_flight:
            console.say(f"waiting for {summary.in_flight} requests under way; Ctrl-C again leaves them")

    def again() -> str:
        return f"{len(runner.journal)} scores are in {runner.journal.folder}; run the same command again to go on"

    try:
        with console.bar("asking") as bar:

            def progress(summary: Summary) -> None:
                note = _note(summary, total, time.monotonic() - started, runner.retry.retries)
                bar.update(summary.done, total, note)

            runner.run(questions, concurrency=settings.concurrency, on_progress=progress, on_interrupt=interrupted)
    except KeyboardInterrupt:
        raise KeyboardInterrupt(again()) from None
    except AnnotationStopped as error:
        raise CommandFailed(f"{error}. {again()}") from None


def _note(summary: Summary, total: int, seconds: float, retries: int) -> str:
    parts = [f"{summary.prompt_tokens:,} + {summary.completion_tokens:,} tokens"]
    if retries:
        parts.append(f"{retries} retries")
    if summary.failed or summary.unanswered:
        parts.append(f"{summary.failed + summary.unanswered} without a score")
    if 0 < summary.done < total:
        parts.append(f"about {_duration(seconds / summary.done * (total - summary.done))} left")
    return ", ".join(parts)


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def _finish(source: Source, judge: Judge, journal: Journal, settings: Settings, console: Console) -> None:
    with console.busy("looking for missing scores") as count:
        lacking = list(islice(failures(source, judge, journal, on_records=count), SHOWN_FAILURES))
    for line in lacking:
        console.say(f"no score: {line}")
    if lacking and not (settings.allow_missing or settings.drop_missing):
        raise CommandFailed(
            f"{settings.out} was not written: responses have no score, the first is {lacking[0]}. Run again for those "
            "that were not answered, with --retry-failed for all; --allow-missing or --drop-missing writes the rest"
        )
    with console.busy("writing") as count:
        written = write_scored(
            settings.out, source, judge, journal, drop_missing=settings.drop_missing, on_records=count
        )
    for line in written.half_characters.lines():
        console.say(line)
    if written.missing and settings.drop_missing:
        console.say(f"left out: {written.dropped} records that lack {written.missing} scores")
    elif written.missing:
        console.say(
            f"{written.missing} responses have no score; training refuses them by line (--drop-missing leaves them out)"
        )
    prompt, completion = journal.tokens
    console.say(f"tokens, over all runs of this journal: {prompt:,} read and {completion:,} written by the judge")
    console.say(f"{written.records} records written to {settings.out}")


def _plan_line(plan: Plan) -> str:
    parts = [f"{plan.records} records, {plan.responses} responses"]
    if plan.wanted != plan.responses:
        parts.append(f"{plan.responses - plan.wanted} scored already")
    parts.append(f"{plan.questions} distinct questions: {plan.answered} in the journal, {plan.open} to ask")
    if plan.failed:
        parts.append(f"{plan.failed} failed before")
    return ", ".join(parts)


def _show_plan(plan: Plan, judge: Judge, settings: Settings) -> None:
    print(_plan_line(plan))
    print(
        f"about {math.ceil(plan.characters / 4):,} tokens to read, at most {plan.open * settings.max_tokens:,} to write"
    )
    if plan.first is not None:
        shown = {**judge.sampling, "model": judge.model}
        print(f"\nfirst request to {_shown(settings.endpoint)}: {json.dumps(shown, sort_keys=True)}")
        for message in judge.messages(plan.first, fence="(a random mark)"):
            print(f"\n--- {message['role']}\n{_shown(message['content'])}")
    print("\ndry run: nothing was sent, nothing written")


def _shown(text: str) -> str:
    """Foreign text for a terminal: lines and tabs stay, other control characters show as what they are."""
    return "".join(c if c.isprintable() or c in "\n\t" else repr(c)[1:-1] for c in text)
