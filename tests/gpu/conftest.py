"""Tests of what only a CUDA device shows. Elsewhere they are skipped, each with that reason.

`AMOPO_DRY_RUN=1` runs on the CPU what can run there, to see that the tests themselves work.
"""

from __future__ import annotations

import os
import zlib
from pathlib import Path

import pytest
import torch

DRY_RUN = os.environ.get("AMOPO_DRY_RUN") == "1" and not torch.cuda.is_available()


def pytest_configure(config):
    config.addinivalue_line("markers", "cuda_only: has no counterpart in the dry run on a CPU")


def pytest_collection_modifyitems(items):
    here = Path(__file__).parent
    for item in items:
        if here not in Path(item.path).parents:
            continue
        item.add_marker(pytest.mark.gpu)
        if not torch.cuda.is_available() and (not DRY_RUN or item.get_closest_marker("cuda_only")):
            item.add_marker(pytest.mark.skip(reason="needs a CUDA device"))


@pytest.fixture
def device() -> torch.device:
    return torch.device("cpu") if DRY_RUN else torch.device("cuda", torch.cuda.current_device())


@pytest.fixture
def vocab() -> int:
    """A vocabulary of full size, which no block of a kernel divides; dry, one with a full block and a tail."""
    return 4999 if DRY_RUN else 151_937


@pytest.fixture(autouse=True)
def fresh_seed(request):
    torch.manual_seed(zlib.crc32(request.node.nodeid.encode()))


@pytest.fixture(autouse=True)
def poisoned_memory():
    """Fill every uninitialised tensor with NaN, so that an entry that is never written shows."""
    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.utils.deterministic.fill_uninitialized_memory = True
    yield
    torch.use_deterministic_algorithms(False)
