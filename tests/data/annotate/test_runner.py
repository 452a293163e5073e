"""Every question gets one answer, whatever the endpoint does; none is asked more often than it must be."""

from __future__ import annotations

import pytest

from amopo.data.annotate import AnnotationStopped, Endpoint


def test_every_response_is_asked_once_and_scored(stub, run, scores, write, rows, expected):
    path = write(rows(12))
    summary = run(path, concurrency=4)
    assert scores(path) == {r["text"]: expected(r["text"]) for row in rows(12) for r in row["responses"]}
    assert set(stub.counts.values()) == {1} and len(stub.counts) == 24
    assert (summary.answered, summary.replies, summary.failed) == (24, 24, 0)
    assert (summary.prompt_tokens, summary.completion_tokens) == (2400, 240)


def test_equal_responses_to_equal_prompts_are_one_question(stub, run, scores, write, rows):
    (one,) = rows(1)
    one["responses"].append({"text": one["responses"][0]["text"], "scores": {}})
    again = {**one, "id": "again"}
    other = {**one, "id": "other", "prompt": "Another prompt."}
    path = write([one, again, other])
    run(path, concurrency=3)
    assert None not in scores(path).values()
    # two texts under two prompts
    assert len(stub.requests) == 4 and set(stub.counts.values()) == {2}


def test_what_is_in_the_journal_is_not_asked_again(stub, run, write, rows):
    run(write(rows(3)))
    summary = run(write(rows(5)))
    assert len(stub.requests) == 10 and set(stub.counts.values()) == {1}
    assert summary.answered == 4


def test_another_endpoint_or_a_higher_limit_asks_nothing_anew(stub, run, write, rows, make_judge):
    path = write(rows(2))
    run(path)
    limit = make_judge(sampling={"temperature": 0, "max_tokens": 2048})
    run(path, endpoint=Endpoint(stub.url.replace("127.0.0.1", "localhost")), judge=limit)
    assert len(stub.requests) == 4


# Failures that pass


def test_retry_after_is_waited_for(stub, run, actions, clock, write, rows):
    path = write(rows(1))
    stub.plan("Prompt 0, answer 0", actions.status(429, {"Retry-After": "7"}))
    summary = run(path)
    assert summary.answered == 2 and clock.sleeps == [7]
    first, second = (r for r in stub.requests if r.answer == "Prompt 0, answer 0")
    # the same request: same bytes under the same key
    assert first.raw == second.raw and first.headers["Idempotency-Key"] == second.headers["Idempotency-Key"]


def test_without_retry_after_the_waits_double(stub, run, actions, clock, write, rows):
    stub.plan("Prompt 0, answer 0", *[actions.status(code) for code in (500, 503, 408)])
    assert run(write(rows(1))).answered == 2
    assert clock.sleeps == [1, 2, 4]


@pytest.mark.parametrize("failure", ["reset", "cut", "hang"])
def test_a_broken_connection_or_no_answer_is_tried_again(failure, stub, run, actions, clock, write, rows):
    broken = {
        "reset": actions.reset(),
        "cut": actions.raw(b'{"choices": [', length=5000),
        "hang": actions.hang(),
    }[failure]
    stub.plan("Prompt 0, answer 0", broken)
    summary = run(write(rows(1)), endpoint=Endpoint(stub.url, timeout=2 if failure == "hang" else 60))
    assert summary.answered == 2 and summary.replies == 2 and len(clock.sleeps) == 1
    keys = {r.headers["Idempotency-Key"] for r in stub.requests if r.answer == "Prompt 0, answer 0"}
    assert stub.counts["Prompt 0, answer 0"] == 2 and len(keys) == 1


def test_a_question_whose_tries_are_exhausted_is_left_for_the_next_run(stub, run, scores, actions, write, rows):
    path = write(rows(2))
    stub.plan("Prompt 0, answer 0", *[actions.status(502)] * 4)
    summary = run(path, max_retries=3)
    assert (summary.answered, summary.unanswered, summary.failed) == (3, 1, 0)
    assert [text for text, score in scores(path).items() if score is None] == ["Prompt 0, answer 0"]
    assert run(path).answered == 1
    assert None not in scores(path).values()
    assert stub.counts == {"Prompt 0, answer 0": 5} | {t: 1 for t in scores(path) if t != "Prompt 0, answer 0"}


# Replies without a score


@pytest.mark.parametrize(
    "reply",
    [
        "no JSON at all",
        '{"reason": "scale forgotten"}',
        '{"score": 9}',
        '{"score": 2.5}',
        '{"score": null}',
        '{"score": 1} or {"score": 4}',
        "",
    ],
)
def test_a_reply_that_cannot_be_used_is_asked_for_again(reply, stub, run, scores, actions, write, rows):
    path = write(rows(1))
    stub.plan("Prompt 0, answer 0", actions.say(reply))
    summary = run(path)
    assert None not in scores(path).values() and (summary.answered, summary.replies) == (2, 3)
    first, second = (r for r in stub.requests if r.answer == "Prompt 0, answer 0")
    assert first.headers["Idempotency-Key"] != second.headers["Idempotency-Key"]
    if reply:  # the judge sees what it said, and what was wrong with it
        assert second.body["messages"][:2] == first.body["messages"]
        assert second.body["messages"][2] == {"role": "assistant", "content": reply}
        assert "cannot be used" in second.body["messages"][3]["content"]


def test_a_body_that_is_no_completion_counts_as_a_reply(stub, run, actions, write, rows):
    stub.plan("Prompt 0, answer 0", actions.raw(b"<html>"), actions.raw(b'{"choices": []}'))
    assert (summary := run(write(rows(1)))).answered == 2 and summary.replies == 4


def test_unreadable_replies_are_bounded_also_over_runs(stub, run, scores, actions, write, rows):
    path, bad = write(rows(2)), "Prompt 1, answer 1"
    stub.plan(bad, *[actions.say("no")] * 7)
    summary = run(path, max_asks=2)
    assert (summary.answered, summary.failed) == (3, 1) and stub.counts[bad] == 2
    # failed is settled: another run does not pay for it again, unless it is told to
    assert run(path, max_asks=2).done == 0 and stub.counts[bad] == 2
    assert run(path, max_asks=2, retry_failed=True).failed == 1 and stub.counts[bad] == 4
    # a higher bound gives the difference
    assert run(path, max_asks=6).failed == 1 and stub.counts[bad] == 6
    assert scores(path)[bad] is None
    assert run(path, max_asks=8).answered == 1 and stub.counts[bad] == 8
    keys = [r.headers["Idempotency-Key"] for r in stub.requests if r.answer == bad]
    assert len(set(keys)) == 8
    assert scores(path)[bad] == 1


def test_a_refused_request_is_not_repeated(stub, run, actions, write, rows):
    path, bad = write(rows(2)), "Prompt 1, answer 1"
    stub.plan(bad, actions.status(400, text='{"error": {"message": "context too long"}}'))
    assert run(path).failed == 1
    assert run(path).done == 0 and stub.counts[bad] == 1
    assert run(path, retry_failed=True).answered == 1


# What stops a run


@pytest.mark.parametrize(
    ("status", "words"),
    [
        ({"code": 401}, ["401", "--api-key-env"]),
        ({"code": 403}, ["403", "--model", "--api-key-env"]),
        ({"code": 404, "text": '{"error": "model not found"}'}, ["404", "model not found", "/v1", "--model"]),
        ({"code": 402}, ["credit"]),
        ({"code": 429, "text": '{"error": {"message": "m", "code": "insufficient_quota"}}'}, ["credit"]),
        ({"code": 429, "headers": {"Retry-After": "5000"}}, ["5000 s", "same command"]),
        ({"code": 307, "headers": {"Location": "http://elsewhere.example/v1"}}, ["redirects", "elsewhere.example"]),
    ],
)
def test_what_no_repetition_mends_stops_at_once(status, words, stub, run, scores, actions, write, rows, clock):
    path = write(rows(5))
    stub.plan("Prompt 1, answer 1", actions.status(**status))
    with pytest.raises(AnnotationStopped) as stopped:
        run(path)
    assert all(word in str(stopped.value) for word in words), stopped.value
    assert "\n" not in str(stopped.value)
    # the two before it are in the journal, nothing was asked after it
    assert len(stub.requests) == 3 and not clock.sleeps
    assert [score for score in scores(path).values() if score is not None] == [0, 2]


def test_an_endpoint_that_only_fails_is_not_asked_about_everything(stub, run, actions, write, rows):
    stub.default = lambda request: actions.status(500)
    with pytest.raises(AnnotationStopped, match="5 questions in a row got no score.*500"):
        run(write(rows(50)), max_retries=1, give_up_after=5)
    assert len(stub.requests) == 10


def test_one_score_in_between_keeps_a_run_going(stub, run, actions, write, rows):
    for number in range(6):
        stub.plan(f"Prompt {number}, answer {number % 5}", actions.status(400))
    assert run(write(rows(6)), give_up_after=2).failed == 6


def test_a_host_that_does_not_exist_stops_at_once(run, write, rows, monkeypatch, clock):
    import socket

    def unknown(*args, **kwargs):
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", unknown)
    with pytest.raises(AnnotationStopped, match="judge.example.*--endpoint"):
        run(write(rows(1)), endpoint=Endpoint("http://judge.example/v1"))
    assert not clock.sleeps


def test_ctrl_c_keeps_the_answers_that_are_under_way(stub, run, scores, actions, write, rows):
    path = write(rows(10))
    stub.default = lambda request: actions.hang() if len(stub.requests) > 6 else None
    seen = []

    def interrupt(summary):
        if stub.hanging == 3 and not seen:
            seen.append(summary.in_flight)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(path, concurrency=3, on_progress=interrupt, on_interrupt=lambda summary: stub.release.set())
    assert seen == [3]
    # nine were sent, nine are recorded, none was sent after
    assert len(stub.requests) == 9
    assert sum(score is not None for score in scores(path).values()) == 9
    stub.default = None
    assert run(path).answered == 11 and set(stub.counts.values()) == {1}


def test_a_journal_that_cannot_be_written_stops_the_run(stub, run, write, rows, monkeypatch):
    from amopo.data.annotate import Journal

    def full(self, entry):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Journal, "answered", lambda self, key, **entry: full(self, entry))
    with pytest.raises(OSError, match="No space"):
        run(write(rows(10)))
    assert len(stub.requests) == 1
