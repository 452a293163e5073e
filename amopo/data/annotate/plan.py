"""What is to be asked, and what is settled.

    questions_of(source, judge)                         every response that needs a score: (entry, number, question)
    Policy(max_asks=3, retry_failed=False)              when a question is open, and how often it may be asked
    make_plan(source, judge, journal, policy) -> Plan   counts over the whole file, which is read for it
    failures(source, judge, journal)                    each response that lacks its score, with the reason

Both tell `on_records(n)` how many records they have read.

A question is open while the journal has no score for it, it was not refused, and fewer than `max_asks` replies were
unreadable. `retry_failed` opens those that are not: each may be asked `max_asks` times more. Equal (prompt, response)
pairs have one key and are one question.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from amopo.data.annotate.errors import printable
from amopo.data.annotate.journal import Journal, State
from amopo.data.annotate.prompt import Judge, Question
from amopo.data.annotate.source import Entry, Source
from amopo.data.readers.forms import OnRows
from amopo.data.seen import SeenNames


@dataclass(frozen=True)
class Policy:
    max_asks: int = 3
    retry_failed: bool = False

    def is_spent(self, state: State) -> bool:
        return state.score is None and (state.refused or state.asks >= self.max_asks)

    def is_open(self, state: State) -> bool:
        return state.score is None and (self.retry_failed or not self.is_spent(state))

    def last_ask(self, state: State) -> int:
        """The number of the last reply that an open question may get."""
        return self.max_asks + (state.asks if self.is_spent(state) else 0)


@dataclass(frozen=True)
class Plan:
    """Counts of records, of responses (`responses`, `wanted`), and of distinct questions (all others)."""

    records: int
    responses: int
    wanted: int
    questions: int
    answered: int
    failed: int
    open: int
    characters: int
    """Of the open questions' messages; a token has about four."""
    first: Question | None
    """The first open one."""


def questions_of(
    source: Source, judge: Judge, on_records: OnRows | None = None
) -> Iterator[tuple[Entry, int, Question]]:
    """`number` counts the responses of a record from 1."""
    for entry in source.each(on_records):
        for number, (text, wanted) in enumerate(zip(entry.texts, entry.wanted, strict=True), start=1):
            if wanted:
                yield entry, number, judge.question(entry.prompt, text)


def open_questions(source: Source, judge: Judge, journal: Journal, policy: Policy) -> Iterator[Question]:
    """Each open question once, in the order of the file. Holds what `SeenNames` does per question."""
    seen = SeenNames()
    for _, _, question in questions_of(source, judge):
        if _is_new(question, seen) and policy.is_open(journal.state(question.key)):
            yield question


def make_plan(
    source: Source, judge: Judge, journal: Journal, policy: Policy, *, on_records: OnRows | None = None
) -> Plan:
    records = responses = wanted = answered = failed = opened = characters = 0
    first: Question | None = None
    seen = SeenNames()
    for entry in source.each(on_records):
        records += 1
        responses += len(entry.texts)
        for text, is_wanted in zip(entry.texts, entry.wanted, strict=True):
            if not is_wanted:
                continue
            wanted += 1
            question = judge.question(entry.prompt, text)
            if not _is_new(question, seen):
                continue
            state = journal.state(question.key)
            answered += state.score is not None
            failed += policy.is_spent(state)
            if policy.is_open(state):
                opened += 1
                first = first or question
                characters += sum(len(message["content"]) for message in judge.messages(question, fence=""))
    return Plan(records, responses, wanted, len(seen), answered, failed, opened, characters, first)


def failures(source: Source, judge: Judge, journal: Journal, *, on_records: OnRows | None = None) -> Iterator[str]:
    """In the order of the file."""
    for entry, number, question in questions_of(source, judge, on_records):
        state = journal.state(question.key)
        if state.score is None:
            yield f"{entry.source}, response {number}: {printable(state.why) or 'not answered'}"


def _is_new(question: Question, seen: SeenNames) -> bool:
    return not seen.add_hash(int(question.key[:16], 16) >> 1)
