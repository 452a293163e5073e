"""Shared pieces of the kernel tests: poisoned memory, fp64 truth, the error criterion."""

from __future__ import annotations

import zlib

import pytest
import torch


@pytest.fixture(autouse=True)
def poisoned_memory():
    """Fill every uninitialised tensor with NaN, so that an entry that is never written shows."""
    torch.use_deterministic_algorithms(True)
    torch.utils.deterministic.fill_uninitialized_memory = True
    yield
    torch.use_deterministic_algorithms(False)


@pytest.fixture(autouse=True)
def fresh_seed(request):
    """Inputs differ from test to test and repeat from run to run."""
    torch.manual_seed(zlib.crc32(request.node.nodeid.encode()))
