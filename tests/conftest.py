"""What all tests share."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

try:
    from hypothesis import HealthCheck, settings
except ImportError:  # where only tests without it run
    pass
else:
    # The same examples in every run, and none that fails because the machine was busy.
    settings.register_profile(
        "amopo", deadline=None, derandomize=True, database=None, suppress_health_check=[HealthCheck.too_slow]
    )
    settings.load_profile("amopo")


@pytest.fixture(scope="session", autouse=True)
def _token_cache(tmp_path_factory):
    """Tokenised data goes to a folder of this session, in the processes that tests start too."""
    before = os.environ.get("AMOPO_CACHE")
    os.environ["AMOPO_CACHE"] = str(tmp_path_factory.mktemp("cache"))
    yield
    if before is None:
        del os.environ["AMOPO_CACHE"]
    else:
        os.environ["AMOPO_CACHE"] = before


@pytest.fixture(scope="session")
def rows():
    """Prompts with a better and a worse response, scored on a and b from 0 to 4."""

    def make(count: int, *, start: int = 0) -> list[dict]:
        return [
            {
                "id": f"r{number}",
                "prompt": f"Say the number {number}.",
                "responses": [
                    {"text": f"The number is {number}.", "scores": {"a": 4, "b": 3}},
                    {"text": "I do not know.", "scores": {"a": 0, "b": number % 3}},
                ],
                "scales": {"a": [0, 4], "b": [0, 4]},
            }
            for number in range(start, start + count)
        ]

    return make


def pytest_sessionfinish(session):
    """Write which Triton kernels were started, for the test that runs this suite in the interpreter."""
    path = os.environ.get("AMOPO_LAUNCHES")
    if path:
        from amopo_kernels.triton.launch import LAUNCHES

        Path(path).write_text(json.dumps(LAUNCHES))
