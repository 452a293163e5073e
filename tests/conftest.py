"""What all tests share."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest


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


def pytest_sessionfinish(session):
    """Write which Triton kernels were started, for the test that runs this suite in the interpreter."""
    path = os.environ.get("AMOPO_LAUNCHES")
    if path:
        from amopo_kernels.triton.launch import LAUNCHES

        Path(path).write_text(json.dumps(LAUNCHES))
