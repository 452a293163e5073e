"""`amopo data annotate` as a process of its own: killed, interrupted, and two at a time."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
from annotating import PATIENCE, arguments, one_error, scores_in, texts

from amopo.data.annotate import Journal

ROOT = Path(__file__).resolve().parents[3]


@pytest.fixture
def start(stub):
    processes = []

    def begin(path, out, *flags):
        env = {k: v for k, v in os.environ.items() if not k.lower().endswith("_proxy")}
        env["PYTHONPATH"] = os.pathsep.join([str(ROOT), str(ROOT / "kernels")])
        argv = ["-P", "-m", "amopo", "data", "annotate", path, out, *arguments(stub.url), "--concurrency=3", *flags]
        process = subprocess.Popen(
            [sys.executable, *map(str, argv)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=env,
            # a shell that starts tests in the background makes children ignore Ctrl-C; this undoes it
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
        )
        processes.append(process)
        return process

    yield begin
    for process in processes:
        process.kill()
        process.wait(PATIENCE)
        process.stdout.close()
        process.stderr.close()


@pytest.fixture
def hang_after(stub, actions):
    """The stub answers so many requests; the others hang. Waits until three of them do."""

    def do(count):
        stub.default = lambda request: actions.hang() if len(stub.requests) > count else None
        return lambda: stub.wait_until(lambda: stub.hanging == 3)

    return do


def test_a_kill_loses_nothing_and_asks_again_only_what_was_under_way(
    annotate, start, hang_after, stub, actions, write, rows, tmp_path, expected
):
    path, out = write(rows(20)), tmp_path / "out.jsonl"
    bad = "Prompt 0, answer 0"
    stub.plan(bad, actions.say("hm"))
    wait = hang_after(10)
    process = start(path, out)
    wait()
    process.send_signal(signal.SIGKILL)
    assert process.wait(PATIENCE) == -signal.SIGKILL
    before = list(stub.requests)
    answered, under_way = before[:10], before[10:]
    journal = Journal.peek(f"{out}.journal")
    # each of the three threads had recorded its last reply before it sent the request that hung
    assert len(before) == 13 and len(journal) == 9 and not out.exists()

    stub.default = None
    stub.release.set()
    status, said, _ = annotate(path)  # the lock died with its process
    assert status == 0 and "9 in the journal, 31 to ask" in said
    assert scores_in(out) == {text: expected(text) for text in texts(rows(20))}
    once = Counter({text: 1 for text in texts(rows(20))})
    assert stub.counts == once + Counter([bad]) + Counter(request.answer for request in under_way)
    # what was under way was sent again as the same request
    for request in under_way:
        first, second = (r for r in stub.requests if r.answer == request.answer and r.raw == request.raw)
        assert first.headers["Idempotency-Key"] == second.headers["Idempotency-Key"]
    # and no other request has a key twice
    keys = Counter(request.headers["Idempotency-Key"] for request in stub.requests)
    assert sorted(keys.values()) == [1] * (len(keys) - 3) + [2] * 3
    assert len(answered) == 10


def test_ctrl_c_finishes_the_journal_and_says_how_to_go_on(annotate, start, hang_after, stub, write, rows, tmp_path):
    path, out = write(rows(20)), tmp_path / "out.jsonl"
    wait = hang_after(10)
    process = start(path, out)
    wait()
    process.send_signal(signal.SIGINT)
    for line in process.stdout:
        if "Ctrl-C again" in line:
            break
    stub.release.set()
    _, err = process.communicate(timeout=PATIENCE)
    folder = f"{out}.journal"
    assert process.returncode == 130
    assert err == f"amopo: interrupted; 13 scores are in {folder}; run the same command again to go on\n"
    assert len(stub.requests) == 13 and len(Journal.peek(folder)) == 13
    stub.default = None
    assert annotate(path)[0] == 0 and set(stub.counts.values()) == {1} and len(stub.counts) == 40


def test_a_second_ctrl_c_does_not_wait(start, hang_after, write, rows, tmp_path):
    wait = hang_after(10)
    process = start(write(rows(20)), tmp_path / "out.jsonl")
    wait()
    process.send_signal(signal.SIGINT)
    for line in process.stdout:
        if "Ctrl-C again" in line:
            break
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=PATIENCE)
    assert process.returncode == 130 and err.startswith("amopo: interrupted; 10 scores are in ")


def test_two_runs_on_one_journal_are_not_possible(annotate, start, hang_after, stub, write, rows, tmp_path):
    path = write(rows(20))
    wait = hang_after(10)
    process = start(path, tmp_path / "out.jsonl")
    wait()
    message = one_error(annotate(path))
    assert f"another run (process {process.pid})" in message and "--cache" in message
    assert len(stub.requests) == 13
