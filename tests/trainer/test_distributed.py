"""Two ranks with unequal batches train as one process does."""

import json
import os
import subprocess
import sys
from pathlib import Path

import distributed_worker
import pytest
import torch

HERE = Path(__file__).parent
ROOT = HERE.parents[1]

pytestmark = pytest.mark.distributed


@pytest.fixture(scope="module")
def two_ranks(tmp_path_factory):
    directory = tmp_path_factory.mktemp("ranks")
    paths = [str(HERE), str(ROOT), str(ROOT / "kernels")]
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(paths), "OMP_NUM_THREADS": "1"}
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    command = [*launch, str(HERE / "distributed_worker.py"), str(directory)]
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=800)
    assert done.returncode == 0, done.stderr[-4000:]
    return directory


@pytest.mark.parametrize("case", distributed_worker.CASES)
def test_weights_and_loss_after_two_steps_equal_the_single_process(case, two_ranks, tmp_path):
    ranks = [json.loads((two_ranks / f"{case}-{rank}.json").read_text()) for rank in range(2)]
    counts = [sum(index >= 0 for batch in rank["batches"] for index in batch) for rank in ranks]
    assert len(ranks[0]["batches"]) == len(ranks[1]["batches"]) > 1
    assert counts[0] != counts[1], "the case must be unequal"
    if case == "filler":
        assert any(index < 0 for rank in ranks for batch in rank["batches"] for index in batch)

    count = distributed_worker.CASES[case]["count"]
    single = distributed_worker.make(tmp_path, count=count, one_batch=True)
    single.train()
    evaluated = single.evaluate()
    expected = [entry for entry in single.state.log_history if "loss" in entry]
    assert len(expected) == 2
    weights = [torch.load(two_ranks / f"{case}-{rank}.pt", weights_only=True) for rank in range(2)]
    for name, value in single.model.state_dict().items():
        assert weights[0][name].equal(weights[1][name]), "ranks must agree"
        torch.testing.assert_close(weights[0][name], value, rtol=1e-5, atol=1e-5)
    for rank in ranks:
        history = [entry for entry in rank["history"] if "loss" in entry]
        assert len(history) == 2
        for got, wanted in zip(history, expected, strict=True):
            for name in wanted:
                if not name.endswith("tokens_per_second") and name not in ("amopo/fill", "amopo/peak_memory_gib"):
                    assert got[name] == pytest.approx(wanted[name], rel=1e-4, abs=1e-5), name
        for name, value in evaluated.items():
            if name not in ("eval_runtime", "eval_samples_per_second"):
                assert rank["evaluated"][name] == pytest.approx(value, rel=1e-4, abs=1e-5), name
