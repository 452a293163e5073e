"""One request to an OpenAI-compatible chat-completions endpoint.

    endpoint = Endpoint("http://localhost:8000/v1", api_key=None, timeout=120)
    endpoint.post(body, idempotency_key="...") -> bytes          the answer's body, status 200

Raises TransientError (408, 409, 425, 429, 5xx, time-outs, broken connections), RefusedError (other 4xx: this request
only) or AnnotationStopped (401, 402, 403, 404, redirects, an exhausted quota, an unknown host, a bad certificate), each
in one line with what to do. Redirects are not followed: they would carry the key to another host. Proxies are taken
from the environment, as by every program that uses urllib. `timeout` bounds each wait for the server and the whole
reading of an answer.
"""

from __future__ import annotations

import http.client
import json
import socket
import ssl
import time
import urllib.error
import urllib.request
from email.utils import parsedate_to_datetime
from urllib.parse import urlsplit, urlunsplit

from amopo.data.annotate.errors import AnnotationStopped, RefusedError, TransientError, printable

LARGEST_ANSWER = 16 * 2**20  # bytes
PATH = "/chat/completions"
_TRANSIENT = frozenset({408, 409, 425, 429})
_NEVER_LATER = frozenset({501, 505})
_LOCAL = frozenset({"localhost", "127.0.0.1", "::1"})


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    def redirect_request(self, *args: object, **kwargs: object) -> None:
        return None


class Endpoint:
    def __init__(self, url: str, *, api_key: str | None = None, timeout: float = 120.0) -> None:
        self.url = _completions_url(url)
        # What messages show: a query may hold a secret.
        self.shown_url = self.url.partition("?")[0]
        self.timeout = timeout
        self._key = None if api_key is None else _check_key(api_key)
        self._opener = urllib.request.build_opener(_NoRedirect)

    def __repr__(self) -> str:
        return f"Endpoint({self.shown_url!r})"

    @property
    def sends_key_in_clear(self) -> bool:
        parts = urlsplit(self.url)
        return self._key is not None and parts.scheme == "http" and parts.hostname not in _LOCAL

    def post(self, body: bytes, *, idempotency_key: str) -> bytes:
        headers = {
            "Content-Type": "application/json",
            "Accept": "application/json",
            "User-Agent": "amopo",
            "Idempotency-Key": idempotency_key,
        }
        request = urllib.request.Request(self.url, data=body, headers=headers, method="POST")
        if self._key is not None:
            # "unredirected": urllib keeps it out of anything but this very request
            request.add_unredirected_header("Authorization", f"Bearer {self._key}")
        try:
            with self._opener.open(request, timeout=self.timeout) as response:
                return self._read(response)
        except urllib.error.HTTPError as error:
            with error:
                self._raise_for_status(error)
        except urllib.error.URLError as error:
            self._raise_for_connection(error.reason)
        except (OSError, http.client.HTTPException) as error:
            self._raise_for_connection(error)
        raise AssertionError("unreachable")

    def scrub(self, text: str) -> str:
        """Text of the server without the key, should it have sent it back."""
        return text if self._key is None else text.replace(self._key, "***")

    def _read(self, response: http.client.HTTPResponse) -> bytes:
        # The socket's time-out starts anew with every byte; a server that trickles needs a bound of its own.
        deadline, parts, size = time.monotonic() + self.timeout, [], 0
        while part := response.read1(65536):
            parts.append(part)
            size += len(part)
            if size > LARGEST_ANSWER:
                raise RefusedError(f"the answer is larger than {LARGEST_ANSWER} bytes")
            if time.monotonic() > deadline:
                raise TimeoutError("the answer did not end")
        expected = response.getheader("Content-Length")
        if expected is not None and expected.isdigit() and size < int(expected):
            raise TransientError(f"the connection broke after {size} of {expected} bytes")
        return b"".join(parts)

    def _raise_for_connection(self, reason: object) -> None:
        host = urlsplit(self.url).netloc
        text = self.scrub(printable(str(reason) or type(reason).__name__))
        if isinstance(reason, TimeoutError):
            raise TransientError(f"no answer from {host} within {self.timeout:g} s")
        if isinstance(reason, ssl.SSLCertVerificationError):
            raise AnnotationStopped(f"the certificate of {host} is not trusted ({text}); check --endpoint")
        if isinstance(reason, ssl.SSLError) and "WRONG_VERSION_NUMBER" in text:
            raise AnnotationStopped(f"{host} does not speak TLS; write http:// in --endpoint")
        if isinstance(reason, socket.gaierror) and reason.errno == socket.EAI_NONAME:
            raise AnnotationStopped(f"the host {host} is not known ({text}); check --endpoint")
        raise TransientError(f"no connection to {host} ({text})")

    def _raise_for_status(self, error: urllib.error.HTTPError) -> None:
        status = error.code
        try:
            raw = error.read(100_000).decode("utf-8", errors="replace")
        except (OSError, http.client.HTTPException):
            raw = ""
        said, code = _server_message(raw)
        said = self.scrub(printable(said))
        text = f"HTTP {status} from {self.shown_url}" + (f" ({said})" if said else "")
        if status == 401:
            raise AnnotationStopped(
                f"{text}: the API key is missing or wrong; put it into an environment variable and name that with "
                "--api-key-env"
            )
        if status == 402 or code == "insufficient_quota":
            raise AnnotationStopped(f"{text}: the account has no credit left; add some and run the same command again")
        if status == 403:
            raise AnnotationStopped(f"{text}: this key may not use this model; check --model and --api-key-env")
        if status == 404:
            raise AnnotationStopped(
                f"{text}: no such address or no such model; check --endpoint (it often ends with /v1) and --model"
            )
        if 300 <= status < 400:
            target = self.scrub(printable(error.headers.get("Location") or "another address"))
            raise AnnotationStopped(f"{text}: it redirects to {target}; name that in --endpoint if you trust it")
        if status in _TRANSIENT or (status >= 500 and status not in _NEVER_LATER):
            raise TransientError(text, retry_after=parse_retry_after(error.headers.get("Retry-After"), time.time()))
        raise RefusedError(text)


def parse_retry_after(value: str | None, now: float) -> float | None:
    """Seconds to wait from the header's seconds or HTTP date; None without it, or where it says nothing."""
    if value is None:
        return None
    try:
        seconds = float(value)
    except ValueError:
        try:
            seconds = parsedate_to_datetime(value).timestamp() - now
        except (ValueError, TypeError, OverflowError):
            return None
    if seconds != seconds:
        return None
    return max(0.0, seconds)


def _server_message(raw: str) -> tuple[str, object]:
    """The error's text and code, as most servers send them; else the text as it is."""
    try:
        data = json.loads(raw)
    except (ValueError, RecursionError):
        return raw, None
    error = data.get("error", data) if isinstance(data, dict) else data
    if isinstance(error, dict):
        return str(error.get("message") or error.get("detail") or raw), error.get("code")
    return str(error), None


def _completions_url(url: str) -> str:
    try:
        parts = urlsplit(url)
        port_is_fine = parts.port is None or parts.port > 0
    except ValueError:
        port_is_fine = False
    if not port_is_fine or parts.scheme not in ("http", "https") or not parts.hostname or not url.isascii():
        raise ValueError("--endpoint: a URL such as http://localhost:8000/v1 is needed")
    if any(c.isspace() or not c.isprintable() for c in url):
        raise ValueError("--endpoint: the URL holds a space or a control character")
    if parts.username is not None or parts.password is not None:
        raise ValueError("--endpoint: the URL holds a user name or password; keys are given with --api-key-env")
    path = parts.path.rstrip("/")
    if not path.endswith(PATH):
        path += PATH
    return urlunsplit((parts.scheme, parts.netloc, path, parts.query, ""))


def _check_key(key: str) -> str:
    key = key.strip()
    # The message names no part of it; urllib's own error about such a header would print it whole.
    if not key or not all("!" <= c <= "~" for c in key):
        raise ValueError(
            "--api-key-env: the variable holds no usable key: it is empty, or has spaces or odd characters"
        )
    return key
