"""`amopo train` on two processes, however they are started: the same losses as one, and one line for an error."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from amopo.cli import launch
from amopo.cli.errors import UsageError

pytest.importorskip("transformers")

ROOT = Path(__file__).resolve().parents[2]
PATHS = [str(ROOT), str(ROOT / "kernels")]
ENV = {**os.environ, "OMP_NUM_THREADS": "1"}
PYTHON = sys.executable
# An optimizer step takes all samples, so that one process and two do the same; SGD does not magnify rounding.
FLAGS = [
    *("--gradient-accumulation-steps=50", "--num-train-epochs=3", "--optim=sgd", "--learning-rate=0.1"),
    *("--logging-steps=1", "--save-strategy=no", "--samples=0"),
]
STARTS = {
    "--nproc": [PYTHON, "-m", "amopo"],
    "torchrun": [PYTHON, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2", "-m", "amopo"],
    "accelerate": [
        *(PYTHON, "-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes=2", "--num_machines=1"),
        *("--mixed_precision=no", "--dynamo_backend=no", "--main_process_port=0", "-m", "amopo"),
    ],
}

pytestmark = [pytest.mark.distributed, pytest.mark.timeout(600)]


@pytest.fixture
def flags(small, data, tmp_path):
    def of(folder: str) -> list[str]:
        given = ["--data", data, "--objectives=a,b", "--output-dir", tmp_path / folder]
        return [str(flag) for flag in ("train", *small, *given, *FLAGS)]

    return of


def run(command: list[str], *paths: Path) -> subprocess.CompletedProcess:
    env = ENV | {"PYTHONPATH": os.pathsep.join([*map(str, paths), *PATHS])}
    return subprocess.run(command, env=env, capture_output=True, text=True, timeout=500)


def found(folder: Path) -> tuple[list[float], dict[str, float]]:
    metrics = json.loads((folder / "metrics.json").read_text())
    return [row["loss"] for row in metrics["log_history"] if "loss" in row], metrics["preferences"]["after"]


@pytest.mark.parametrize("start", STARTS)
def test_two_processes_end_with_the_loss_of_one(start, amopo, flags, tmp_path):
    alone = amopo(*flags("alone"))
    assert alone.status == 0, alone.err
    nproc = ["--nproc=2"] if start == "--nproc" else []
    done = run([*STARTS[start], *flags("two"), *nproc])
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.count("saved in") == 1, "one process speaks"
    (losses, after), (losses_of_two, after_of_two) = found(tmp_path / "alone"), found(tmp_path / "two")
    assert len(losses) == 3 and losses[0] > losses[2] + 1e-3, "the run must change something"
    assert losses_of_two == pytest.approx(losses, rel=1e-5)
    for name in ("loss", "rewards/margins", "rewards/accuracies", "logps/chosen"):
        assert after_of_two[name] == pytest.approx(after[name], rel=1e-4, abs=1e-5)
    settings = json.loads((tmp_path / "two" / "amopo_run.json").read_text())["settings"]
    assert settings["world_size"] == 2


FAILS = """
import os
if os.environ.get("RANK") == "1":
    import signal
    import amopo.cli.train as train
    def read(*args, **kwargs):
        {what}
    train.read = read
"""


@pytest.mark.parametrize(
    ("what", "status", "line"),
    [
        ("raise ValueError('the disk of this rank is gone')", 2, "rank 1: the disk of this rank is gone"),
        ("os.kill(os.getpid(), signal.SIGKILL)", 1, "rank 1 was ended by SIGKILL (out of memory?)"),
    ],
    ids=["error", "killed"],
)
def test_the_end_of_one_rank_ends_the_job_with_its_message(what, status, line, flags, tmp_path):
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "sitecustomize.py").write_text(FAILS.format(what=what))
    done = run([PYTHON, "-m", "amopo", *flags("out"), "--nproc=2"], tmp_path / "site")
    assert done.returncode == status, done.stderr
    assert done.stderr.startswith(f"amopo: error: {line}") and done.stderr.count("\n") == 1, done.stderr
    assert not (tmp_path / "out" / "config.json").exists()


def test_a_mistake_is_told_before_any_rank_is_started(amopo, flags, monkeypatch):
    def start(*args, **kwargs):
        raise AssertionError("ranks were started")

    monkeypatch.setattr("amopo.cli.train.start", start)
    assert "--pairs" in amopo(*flags("out"), "--nproc=2", "--pairs=some").one_line()


def test_there_is_no_more_than_one_process_per_gpu(monkeypatch):
    import torch

    monkeypatch.delenv("RANK", raising=False)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    launch.check(4)
    with pytest.raises(UsageError, match="5 processes, but 4 GPUs"):
        launch.check(5)
    launch.check(5, use_cpu=True)


def test_processes_that_leave_the_gpus_alone_may_be_more_than_there_are(amopo, flags, monkeypatch):
    import torch

    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    started = []
    monkeypatch.setattr("amopo.cli.train.start", lambda argv, nproc, **options: started.append((nproc, options)) or 0)
    given = [flag for flag in flags("out") if flag != "--use-cpu"]
    assert "2 processes, but 1 GPUs" in amopo(*given, "--nproc=2").one_line()
    assert started == [] and amopo(*given, "--nproc=2", "--use-cpu").status == 0
    ((nproc, options),) = started
    assert nproc == 2 and options["use_cpu"] is True


def test_the_rank_that_failed_first_is_named_though_the_clock_of_files_ticks_in_seconds(capsys):
    from torch.distributed.elastic.multiprocessing.errors import ProcessFailure

    def failure(rank: int, moment: float, message: str) -> ProcessFailure:
        made = ProcessFailure(local_rank=rank, pid=1, exitcode=rank + 1, error_file="")
        made.message, made.timestamp, made.error_file_data = message, int(moment), {"time": moment}
        return made

    status = launch._report({0: failure(0, 5.9, "connection closed"), 1: failure(1, 5.2, "no space left")})
    assert status == 2 and capsys.readouterr().err == "amopo: error: rank 1: no space left\n"


def test_a_rank_leaves_its_group_before_the_interpreter_ends_unless_it_fails(amopo, tmp_path, monkeypatch):
    import torch.distributed as dist

    dist.init_process_group("gloo", init_method=f"file://{tmp_path / 'store'}", rank=0, world_size=1)
    try:
        assert amopo("env", "--no-such-option").status == 2
        assert dist.is_initialized(), "others may still wait for this rank"
        assert amopo("env").status == 0
        assert not dist.is_initialized()
    finally:
        if dist.is_initialized():
            dist.destroy_process_group()


@pytest.mark.parametrize("flag", ["--local_rank=0", "--local-rank=0"])
def test_the_local_rank_that_a_launcher_puts_before_the_command_is_its_own_affair(flag, amopo, monkeypatch):
    assert "unknown command" in amopo(flag, "env", "--help").one_line()
    monkeypatch.setenv("LOCAL_RANK", "0")
    outcome = amopo(flag, "env", "--help")
    assert outcome.status == 0 and "usage: amopo env" in outcome.out
    assert "unknown command '--local_ronk=0'" in amopo("--local_ronk=0", "env", "--help").one_line()
