"""What all tests share."""

from __future__ import annotations

import json
import os
from pathlib import Path


def pytest_sessionfinish(session):
    """Write which Triton kernels were started, for the test that runs this suite in the interpreter."""
    path = os.environ.get("AMOPO_LAUNCHES")
    if path:
        from amopo_kernels.triton.launch import LAUNCHES

        Path(path).write_text(json.dumps(LAUNCHES))
