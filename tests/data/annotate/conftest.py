"""A judge on a local port that answers, fails or hangs as a test says, and remembers every request."""

from __future__ import annotations

import contextlib
import json
import re
import socket
import struct
import sys
import threading
from collections import Counter, defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from amopo.cli.main import main
from amopo.data import Scale
from amopo.data.annotate import Clock, Endpoint, Journal, Judge, Policy, Retry, Runner, Source, open_questions

sys.path.insert(0, str(Path(__file__).parent))
from annotating import OBJECTIVE, PATIENCE, arguments  # noqa: E402


def truth(answer: str) -> int:
    """The score that the stub gives: the last digit of the answer, 0 without one."""
    return int(([0, *re.findall(r"\d", answer)])[-1]) % 5


@dataclass
class Received:
    answer: str
    body: dict
    raw: bytes
    headers: dict
    path: str


@dataclass
class Status:
    """An error status with these headers and this text."""

    code: int
    headers: dict = field(default_factory=dict)
    text: str = '{"error": {"message": "no"}}'


@dataclass
class Say:
    """A completion with this text."""

    text: str
    finish_reason: str = "stop"


@dataclass
class Raw:
    """This body with status 200; `length` is what Content-Length claims."""

    body: bytes
    length: int | None = None


class Hang:
    """No answer until the test ends or releases it; then the usual one."""


class Reset:
    """The connection is reset."""


class StubJudge:
    def __init__(self) -> None:
        self.requests: list[Received] = []
        self.plans: dict[str, list] = defaultdict(list)
        self.default: Callable[[Received], object] | None = None
        self.release = threading.Event()
        self.changed = threading.Condition()
        self.hanging = 0
        self.usage = {"prompt_tokens": 100, "completion_tokens": 10}
        stub = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                stub.handle(self)

            def log_message(self, *args: object) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads, self.server.block_on_close = True, False
        self.thread = threading.Thread(target=self.server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
        self.thread.start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server.server_address[1]}/v1"

    @property
    def counts(self) -> Counter[str]:
        """Requests per graded answer."""
        return Counter(request.answer for request in self.requests)

    def plan(self, answer: str, *actions: object) -> None:
        """What happens to the first requests for an answer; then it is graded."""
        self.plans[answer] += actions

    def wait_until(self, condition: Callable[[], bool]) -> None:
        with self.changed:
            assert self.changed.wait_for(condition, PATIENCE), f"never came; {len(self.requests)} requests"

    def handle(self, handler: BaseHTTPRequestHandler) -> None:
        raw = handler.rfile.read(int(handler.headers["Content-Length"]))
        body = json.loads(raw)
        found = re.search(r"=== (\w+) answer to grade ===\n(.*)\n=== \1 end ===", body["messages"][1]["content"], re.S)
        request = Received(found[2] if found else "", body, raw, dict(handler.headers), handler.path)
        with self.changed:
            self.requests.append(request)
            plan = self.plans[request.answer]
            action = plan.pop(0) if plan else self.default(request) if self.default else None
            self.hanging += isinstance(action, Hang)
            self.changed.notify_all()
        if isinstance(action, Hang):
            self.release.wait(PATIENCE)
            with self.changed:
                self.hanging -= 1
        with contextlib.suppress(OSError):  # the client is gone
            self.answer(handler, request, action)

    def answer(self, handler: BaseHTTPRequestHandler, request: Received, action: object) -> None:
        if isinstance(action, Reset):
            # zero linger: closing sends a reset instead of an orderly end
            handler.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            handler.connection.close()
            return
        if isinstance(action, Status):
            send(handler, action.code, action.text.encode(), action.headers)
            return
        if isinstance(action, Raw):
            send(handler, 200, action.body, {}, action.length)
            return
        if not isinstance(action, Say):
            action = Say(json.dumps({"reason": "checked", "score": truth(request.answer)}))
        message = {"role": "assistant", "content": action.text}
        completion = {"choices": [{"message": message, "finish_reason": action.finish_reason}], "usage": self.usage}
        send(handler, 200, json.dumps(completion).encode(), {})

    def close(self) -> None:
        self.release.set()
        self.server.shutdown()
        self.server.server_close()


def send(handler: BaseHTTPRequestHandler, code: int, body: bytes, headers: dict, length: int | None = None) -> None:
    handler.send_response(code)
    for name, value in {"Content-Length": len(body) if length is None else length, **headers}.items():
        handler.send_header(name, str(value))
    handler.end_headers()
    handler.wfile.write(body)


@pytest.fixture
def stub(monkeypatch):
    for name in ("http_proxy", "https_proxy", "all_proxy", "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    judge = StubJudge()
    yield judge
    judge.close()


@pytest.fixture
def actions():
    """The kinds of failures, for tests to plan."""

    class Actions:
        status, say, raw, hang, reset = Status, Say, Raw, Hang, Reset

    return Actions


class FakeClock(Clock):
    """Sleeps take no time and are written down."""

    def __init__(self) -> None:
        super().__init__(threading.Event())
        self.time, self.sleeps = 1000.0, []

    def now(self) -> float:
        return self.time

    def sleep(self, seconds: float) -> None:
        self.sleeps.append(seconds)
        self.time += seconds
        super().sleep(0)


@pytest.fixture
def clock():
    return FakeClock()


@pytest.fixture
def make_judge():
    def make(**changes) -> Judge:
        settings = {"model": "m", "objective": OBJECTIVE, "scale": Scale(0, 4), "rubric": "Grade it."}
        return Judge(**{**settings, **changes})

    return make


def make_rows(count: int, *, start: int = 0) -> list[dict]:
    """Prompts with two responses each; their last digits are the scores that the stub gives."""
    return [
        {
            "id": f"r{number}",
            "prompt": f"Say {number}.",
            "responses": [
                {"text": f"Prompt {number}, answer {number % 5}", "scores": {"helpfulness": 3}},
                {"text": f"Prompt {number}, other {(number + 2) % 5}", "scores": {"helpfulness": 1}},
            ],
        }
        for number in range(start, start + count)
    ]


@pytest.fixture
def rows():
    return make_rows


@pytest.fixture
def write(tmp_path):
    def to_file(rows: list, name: str = "data.jsonl") -> Path:
        path = tmp_path / name
        path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))
        return path

    return to_file


@pytest.fixture
def run(stub, clock, make_judge, tmp_path):
    """Asks the stub about every response of a file, without sleeping; gives the summary."""

    def do(path, *, folder="journal", max_asks=3, retry_failed=False, max_retries=3, concurrency=1, **options):
        judge = options.pop("judge", None) or make_judge()
        clock.stop = threading.Event()
        policy = Policy(max_asks=max_asks, retry_failed=retry_failed)
        endpoint = options.pop("endpoint", None) or Endpoint(stub.url, timeout=PATIENCE)
        retry = Retry(endpoint, clock, max_retries=max_retries, draw=lambda: 1.0)
        source = Source(path, objective=judge.objective, scale=judge.scale)
        with Journal(tmp_path / folder) as journal:
            runner = Runner(judge, journal, policy, retry, give_up_after=options.pop("give_up_after", 10))
            questions = open_questions(source, judge, journal, policy)
            return runner.run(questions, concurrency=concurrency, **options)

    return do


@pytest.fixture
def scores(make_judge, tmp_path):
    """What the journal holds about a file's responses: {text: score or None}."""

    def read(path, *, folder="journal", judge=None) -> dict[str, float | None]:
        judge, journal = judge or make_judge(), Journal.peek(tmp_path / folder)
        source = Source(path, objective=judge.objective, scale=judge.scale)
        return {t: journal.state(judge.question(e.prompt, t).key).score for e in source for t in e.texts}

    return read


@pytest.fixture
def expected():
    return truth


@pytest.fixture
def annotate(stub, capsys, monkeypatch, tmp_path):
    """Runs the command on a file against the stub; gives status, stdout and stderr."""
    monkeypatch.delenv("AMOPO_DEBUG", raising=False)

    def run(path, *flags, out=None):
        capsys.readouterr()
        argv = ["data", "annotate", path, out or tmp_path / "out.jsonl", *arguments(stub.url), *flags]
        status = main([str(argument) for argument in argv])
        captured = capsys.readouterr()
        return status, captured.out, captured.err

    return run
