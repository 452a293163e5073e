"""A rank that dies ends the job with an error, instead of leaving the others waiting."""

from __future__ import annotations

import pytest
from launch import HERE, TORCHRUN, needs_deepspeed, start

pytestmark = [pytest.mark.distributed, pytest.mark.timeout(900)]


@pytest.mark.parametrize("engine", ["ddp", "fsdp2", pytest.param("zero3", marks=needs_deepspeed)])
def test_a_killed_rank_ends_the_job_with_an_error(engine, tmp_path):
    done = start([*TORCHRUN, "2", str(HERE / "killed_rank.py"), str(tmp_path), engine], timeout=800)
    assert done.returncode != 0
    assert "rank 1 ends here" in done.stdout and "trained to the end" not in done.stdout
    assert "SIGKILL" in done.stderr or "exitcode  : -9" in done.stderr, done.stderr[-2000:]
