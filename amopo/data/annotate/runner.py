"""The open questions, each asked once, several at a time.

    runner = Runner(judge, journal, policy, retry, give_up_after=10)
    summary = runner.run(questions, concurrency=4, on_progress=..., on_interrupt=...)

Each reply is in the journal before its thread goes on. A reply that cannot be read is asked for again with its fault
pointed out, as often as the policy says. A question whose tries are exhausted without a reply is left for the next run.
When `give_up_after` questions in a row get no score, the run stops: something is wrong that more requests will not
mend. A run that stops lets the requests that are under way finish, since they are paid for.

`on_progress(summary)` is called in the caller's thread a few times per second. Ctrl-C calls `on_interrupt(summary)`,
waits for what is under way, then raises KeyboardInterrupt; a second Ctrl-C does not wait.
"""

from __future__ import annotations

import contextlib
import hashlib
import queue
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from amopo.data.annotate.answer import Completion, UnreadableReply, read_completion, read_score
from amopo.data.annotate.errors import AnnotationStopped, Interrupted, RefusedError
from amopo.data.annotate.journal import Journal
from amopo.data.annotate.plan import Policy
from amopo.data.annotate.prompt import Judge, Question
from amopo.data.annotate.retry import GaveUp, Retry

# Seconds between two looks at the threads.
TICK = 0.2


@dataclass
class Summary:
    """What a run did so far. `failed` and `unanswered` count the questions that it could not settle."""

    answered: int = 0
    failed: int = 0
    unanswered: int = 0
    replies: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    in_flight: int = 0

    @property
    def done(self) -> int:
        return self.answered + self.failed + self.unanswered


def _nothing(summary: Summary) -> None:
    pass


class Runner:
    """One run. `retry` brings the endpoint, and the clock whose `stop` ends the run."""

    def __init__(
        self, judge: Judge, journal: Journal, policy: Policy, retry: Retry, *, give_up_after: int = 10
    ) -> None:
        self.judge, self.journal, self.policy, self.retry = judge, journal, policy, retry
        self.give_up_after = give_up_after
        self.summary = Summary()
        self._stop = retry.clock.stop
        self._lock = threading.Lock()
        self._error: BaseException | None = None
        self._without_score = 0

    def run(
        self,
        questions: Iterator[Question],
        *,
        concurrency: int = 4,
        on_progress: Callable[[Summary], None] = _nothing,
        on_interrupt: Callable[[Summary], None] = _nothing,
    ) -> Summary:
        # Each thread puts one thing here when it ends. Thread.join is no way to wait: when Ctrl-C interrupts it, Python
        # 3.11 takes the thread for ended.
        ended: queue.SimpleQueue[None] = queue.SimpleQueue()
        running = 0
        try:
            for _ in range(concurrency):
                # A daemon: a second Ctrl-C must not wait for a server.
                threading.Thread(target=self._work, args=(questions, ended), daemon=True).start()
                running += 1
            while running:
                with contextlib.suppress(queue.Empty):
                    ended.get(timeout=TICK)
                    running -= 1
                on_progress(self.summary)
        except BaseException as error:
            self._stop.set()
            if isinstance(error, KeyboardInterrupt):
                on_interrupt(self.summary)
            while self.summary.in_flight:
                with contextlib.suppress(queue.Empty):
                    ended.get(timeout=TICK)
            raise
        if self._error is not None:
            raise self._error
        return self.summary

    def _work(self, questions: Iterator[Question], ended: queue.SimpleQueue[None]) -> None:
        try:
            while not self._stop.is_set():
                with self._lock:
                    question = next(questions, None)
                    self.summary.in_flight += question is not None
                if question is None:
                    return
                try:
                    self._settle(question)
                finally:
                    with self._lock:
                        self.summary.in_flight -= 1
        except Interrupted:
            pass
        except BaseException as error:  # handed to the caller's thread
            with self._lock:
                self._error = self._error or error
            self._stop.set()
        finally:
            ended.put(None)

    def _settle(self, question: Question) -> None:
        """Asks until there is a score, or there will be none."""
        state = self.journal.state(question.key)
        last = self.policy.last_ask(state)
        while state.asks < last:
            body = self.judge.body(question, secret=self.journal.secret, unreadable=state.unreadable)
            ask = state.asks + 1
            try:
                reply = self.retry.post(body, idempotency_key=idempotency_key(body, ask))
            except GaveUp as error:
                self._count_without_score(str(error), unanswered=1)
                return
            except RefusedError as error:
                self.journal.refused(question.key, ask=ask, why=str(error))
                self._count_without_score(str(error), failed=1)
                return
            if self._record(question, reply, ask):
                return
            state = self.journal.state(question.key)
        self._count_without_score(state.why, failed=1)

    def _record(self, question: Question, reply: bytes, ask: int) -> bool:
        """Puts the reply into the journal; True if it holds a score."""
        scrub = self.retry.endpoint.scrub
        completion: Completion | None = None
        try:
            completion = read_completion(reply)
            verdict = read_score(completion, self.judge.scale, whole=self.judge.whole)
        except UnreadableReply as error:
            text = "" if completion is None else scrub(completion.text)
            tokens = _tokens(completion)
            self.journal.unreadable(question.key, ask=ask, why=scrub(str(error)), text=text, tokens=tokens)
            self._count_reply(tokens, answered=0)
            return False
        tokens = _tokens(completion)
        self.journal.answered(question.key, ask=ask, score=verdict.score, reason=scrub(verdict.reason), tokens=tokens)
        self._count_reply(tokens, answered=1)
        return True

    def _count_reply(self, tokens: tuple[int, int], *, answered: int) -> None:
        with self._lock:
            self.summary.answered += answered
            self.summary.replies += 1
            self.summary.prompt_tokens += tokens[0]
            self.summary.completion_tokens += tokens[1]
            if answered:
                self._without_score = 0

    def _count_without_score(self, why: str, *, failed: int = 0, unanswered: int = 0) -> None:
        with self._lock:
            self.summary.failed += failed
            self.summary.unanswered += unanswered
            self._without_score += 1
            if self._without_score >= self.give_up_after:
                raise AnnotationStopped(f"{self._without_score} questions in a row got no score, the last one: {why}")


def idempotency_key(body: bytes, ask: int) -> str:
    """Names one request. Asking anew with an equal body is another request; the same one sent again is not."""
    return f"amopo-{hashlib.sha256(body).hexdigest()[:40]}-{ask}"


def _tokens(completion: Completion | None) -> tuple[int, int]:
    return (0, 0) if completion is None else (completion.prompt_tokens, completion.completion_tokens)
