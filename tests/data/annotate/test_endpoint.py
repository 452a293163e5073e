"""One request: where it goes, what it carries, what each failure means."""

from __future__ import annotations

import traceback
from email.utils import formatdate

import pytest

from amopo.data.annotate import AnnotationStopped, Endpoint
from amopo.data.annotate.endpoint import parse_retry_after
from amopo.data.annotate.errors import Interrupted, RefusedError, TransientError
from amopo.data.annotate.retry import GaveUp, Retry

KEY = "sk-very-secret-0123456789"
BODY = b'{"messages": [{}, {"content": ""}]}'


@pytest.mark.parametrize(
    ("url", "full"),
    [
        ("http://h:8000/v1", "http://h:8000/v1/chat/completions"),
        ("https://h/v1/", "https://h/v1/chat/completions"),
        ("https://h/v1/chat/completions", "https://h/v1/chat/completions"),
        ("https://h/openai?api-version=1", "https://h/openai/chat/completions?api-version=1"),
    ],
)
def test_the_path_is_completed_where_it_is_not_there(url, full):
    assert Endpoint(url).url == full


@pytest.mark.parametrize(
    "url",
    ["", "localhost:8000", "ftp://h/v1", "http://", "http://h:99999/v1", "http://h/ v1", "http://h/v1\n", "file:///x"],
)
def test_what_is_no_url_is_refused(url):
    with pytest.raises(ValueError, match="--endpoint"):
        Endpoint(url)


def test_a_password_in_the_url_is_refused_and_not_repeated():
    with pytest.raises(ValueError, match="--api-key-env") as raised:
        Endpoint(f"http://user:{KEY}@h/v1")
    assert KEY not in str(raised.value)


@pytest.mark.parametrize("key", ["", "  ", "two words", f"{KEY}\nX: y", "schlüssel"])
def test_a_key_that_no_header_can_hold_is_refused_and_not_repeated(key):
    with pytest.raises(ValueError, match="--api-key-env") as raised:
        Endpoint("http://h/v1", api_key=key)
    assert not key.strip() or key not in str(raised.value)


def test_a_request_carries_key_body_and_idempotency_key(stub):
    Endpoint(stub.url, api_key=f" {KEY}\n").post(BODY, idempotency_key="amopo-1")
    (request,) = stub.requests
    assert request.path == "/v1/chat/completions" and request.raw == BODY
    assert request.headers["Authorization"] == f"Bearer {KEY}"
    assert request.headers["Idempotency-Key"] == "amopo-1"
    assert request.headers["Content-Type"] == "application/json"


def test_without_a_key_no_authorization_is_sent(stub):
    Endpoint(stub.url).post(BODY, idempotency_key="k")
    assert "Authorization" not in stub.requests[0].headers


def test_only_plain_http_to_another_machine_sends_the_key_in_clear():
    assert Endpoint("http://judge.example/v1", api_key=KEY).sends_key_in_clear
    for url, key in (
        ("https://judge.example/v1", KEY),
        ("http://localhost/v1", KEY),
        ("http://judge.example/v1", None),
    ):
        assert not Endpoint(url, api_key=key).sends_key_in_clear


@pytest.mark.parametrize("status", [301, 302, 307, 308])
def test_the_key_does_not_follow_a_redirect(stub, actions, status):
    stub.plan("", actions.status(status, {"Location": stub.url.replace("127.0.0.1", "localhost")}))
    with pytest.raises(AnnotationStopped, match="redirects to http://localhost"):
        Endpoint(stub.url, api_key=KEY).post(BODY, idempotency_key="k")
    assert len(stub.requests) == 1


@pytest.mark.parametrize("status", [400, 401, 404, 422, 429, 500, 307])
def test_a_server_that_repeats_the_key_or_sends_escapes_does_not_get_them_shown(stub, actions, status):
    stub.plan(
        "", actions.status(status, {"Location": f"http://x/{KEY}"}, f'{{"error": "key {KEY} \\u001b[2J\\nis bad"}}')
    )
    endpoint = Endpoint(stub.url + "?key=" + KEY, api_key=KEY)
    with pytest.raises((AnnotationStopped, RefusedError, TransientError)) as raised:
        endpoint.post(BODY, idempotency_key="k")
    shown = "".join(traceback.format_exception(raised.value))
    assert KEY not in shown and KEY not in repr(endpoint)
    assert "\x1b" not in str(raised.value) and "\n" not in str(raised.value)
    assert "***" in str(raised.value) and str(status) in str(raised.value)


@pytest.mark.parametrize("status", [400, 405, 413, 422, 501])
def test_other_client_errors_concern_this_request_alone(stub, actions, status):
    stub.plan("", actions.status(status, text="plain words"))
    with pytest.raises(RefusedError, match=f"HTTP {status}.*plain words"):
        Endpoint(stub.url).post(BODY, idempotency_key="k")


@pytest.mark.parametrize("status", [408, 409, 425, 429, 500, 502, 503, 504, 529])
def test_what_passes_is_transient(stub, actions, status):
    stub.plan("", actions.status(status, {"Retry-After": "3"}))
    with pytest.raises(TransientError) as raised:
        Endpoint(stub.url).post(BODY, idempotency_key="k")
    assert raised.value.retry_after == 3


def test_nobody_listening_is_transient():
    with pytest.raises(TransientError, match="127.0.0.1:9"):
        Endpoint("http://127.0.0.1:9/v1").post(BODY, idempotency_key="k")


def test_tls_to_a_plain_server_names_the_remedy(stub):
    with pytest.raises(AnnotationStopped, match="http://"):
        Endpoint(stub.url.replace("http:", "https:"), timeout=10).post(BODY, idempotency_key="k")


def test_an_endless_answer_is_cut_off(stub, actions, monkeypatch):
    from amopo.data.annotate import endpoint

    monkeypatch.setattr(endpoint, "LARGEST_ANSWER", 1000)
    stub.plan("", actions.raw(b"x" * 1001))
    with pytest.raises(RefusedError, match="larger than 1000"):
        Endpoint(stub.url).post(BODY, idempotency_key="k")


@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        (None, None),
        ("0", 0),
        ("12.5", 12.5),
        ("-4", 0),
        (formatdate(1_000_030, usegmt=True), 30),
        (formatdate(999_000, usegmt=True), 0),
        ("soon", None),
        ("nan", None),
    ],
)
def test_retry_after_is_seconds_or_a_date(value, seconds):
    assert parse_retry_after(value, 1_000_000) == seconds


# Waiting


class Failing:
    """An endpoint that fails so often, then answers."""

    def __init__(self, *errors):
        self.errors, self.calls = list(errors), 0

    def post(self, body, *, idempotency_key):
        self.calls += 1
        if self.errors:
            raise self.errors.pop(0)
        return b"answer"


def test_waits_double_up_to_a_cap_and_are_spread_by_chance(clock):
    for draw, expected in ((1.0, [1, 2, 4, 8, 10, 10]), (0.0, [0.5, 1, 2, 4, 5, 5])):
        clock.sleeps.clear()
        endpoint = Failing(*[TransientError("x")] * 6)
        retry = Retry(endpoint, clock, max_retries=6, cap=10, draw=lambda draw=draw: draw)
        assert retry.post(b"", idempotency_key="k") == b"answer"
        assert clock.sleeps == expected and retry.retries == 6


def test_no_more_tries_than_asked_for(clock):
    endpoint = Failing(*[TransientError("HTTP 500")] * 9)
    with pytest.raises(GaveUp, match="HTTP 500, 3 tries"):
        Retry(endpoint, clock, max_retries=2).post(b"", idempotency_key="k")
    assert endpoint.calls == 3 and len(clock.sleeps) == 2


def test_one_threads_retry_after_holds_all_back(clock):
    endpoint = Failing(TransientError("HTTP 429", retry_after=50))
    retry = Retry(endpoint, clock, draw=lambda: 1.0)
    retry._hold(50)  # another thread was told
    assert retry.post(b"", idempotency_key="k") == b"answer"
    # its turn came after 50 s, and it was then told to wait 50 s more
    assert clock.sleeps == [50, 50]


def test_a_shorter_retry_after_than_the_backoff_does_not_shorten_it(clock):
    endpoint = Failing(*[TransientError("x", retry_after=1)] * 4)
    Retry(endpoint, clock, draw=lambda: 1.0).post(b"", idempotency_key="k")
    assert clock.sleeps == [1, 2, 4, 8]


def test_a_wait_of_hours_stops_the_run(clock):
    with pytest.raises(AnnotationStopped, match="3600 s"):
        Retry(Failing(TransientError("x", retry_after=3600)), clock).post(b"", idempotency_key="k")
    assert not clock.sleeps


def test_a_run_that_stops_waits_no_longer(clock):
    clock.stop.set()
    endpoint = Failing()
    with pytest.raises(Interrupted):
        Retry(endpoint, clock).post(b"", idempotency_key="k")
    assert endpoint.calls == 0
