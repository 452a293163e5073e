"""Ctrl-C in `amopo train`, with real processes: a checkpoint, the command that goes on, and the same end."""

from __future__ import annotations

import json
import os
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from amopo.cli.stop import Agreement, resume_command

pytest.importorskip("transformers")

ROOT = Path(__file__).resolve().parents[2]
ENV = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "kernels")]), "OMP_NUM_THREADS": "1"}


@pytest.fixture
def command(small, data, tmp_path):
    """The command of a run of many short steps, in a folder of `tmp_path`."""

    def of(folder: str, *argv: object) -> list[str]:
        given = ["--data", data, "--objectives=a,b", "--output-dir", tmp_path / folder, "--samples=0"]
        steps = ["--num-train-epochs=40", "--logging-steps=1", "--save-strategy=no", *argv]
        return [str(word) for word in (sys.executable, "-m", "amopo", "train", *small, *given, *steps)]

    return of


def stop_in_training(command: list[str], folder: Path, number: int) -> subprocess.CompletedProcess:
    """Sends the signal once a few steps are logged, and waits for the end."""
    child = subprocess.Popen(command, env=ENV, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    log = folder / "amopo_log.jsonl"
    end = time.monotonic() + 200
    while not (log.is_file() and log.read_text().count("\n") >= 2):
        assert child.poll() is None and time.monotonic() < end, child.communicate()[1]
        time.sleep(0.02)
    child.send_signal(number)
    out, err = child.communicate(timeout=200)
    return subprocess.CompletedProcess(command, child.returncode, out, err)


def losses(folder: Path) -> dict[int, float]:
    rows = [json.loads(line) for line in (folder / "amopo_log.jsonl").read_text().splitlines()]
    return {row["step"]: row["loss"] for row in rows if "loss" in row}


def final(folder: Path) -> dict[str, float]:
    return json.loads((folder / "metrics.json").read_text())["preferences"]["after"]


@pytest.mark.parametrize(("number", "ranks"), [(signal.SIGINT, 1), (signal.SIGTERM, 2)], ids=["alone", "two-ranks"])
@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_stopped_run_goes_on_by_the_command_that_it_prints_and_ends_the_same(command, tmp_path, number, ranks):
    flags = [f"--nproc={ranks}"] if ranks > 1 else []
    stopped, whole = tmp_path / "stopped run", tmp_path / "whole"
    done = stop_in_training(command("stopped run", *flags), stopped, number)
    assert done.returncode == 130, done.stderr
    assert "stopping after this step" in done.stderr and "Traceback" not in done.stderr
    assert done.stderr.count("amopo: interrupted") == 1
    assert json.loads((stopped / "metrics.json").read_text())["finished"] is False
    (checkpoint,) = stopped.glob("checkpoint-*")
    step = int(checkpoint.name.split("-")[1])
    told = next(line for line in done.stderr.splitlines() if "interrupted" in line)
    assert f"step {step} of " in told and str(checkpoint) in told and max(losses(stopped)) == step

    words = shlex.split(told.split("go on with: ")[1])
    assert words[0] == sys.executable and words[-1] == "--resume" and str(stopped) in words
    resumed = subprocess.run(words, env=ENV, capture_output=True, text=True, timeout=280)
    assert resumed.returncode == 0, resumed.stderr
    run = subprocess.run(command("whole", *flags), env=ENV, capture_output=True, text=True, timeout=280)
    assert run.returncode == 0, run.stderr
    assert step < max(losses(whole)), "the run must have been stopped before its end"
    assert losses(stopped) == pytest.approx(losses(whole), rel=1e-6)
    assert final(stopped) == pytest.approx(final(whole), rel=1e-6)


def test_before_the_training_an_interrupt_says_that_nothing_was_trained(amopo, command, monkeypatch):
    from amopo.cli import train

    def stop(*args, **kwargs):
        raise KeyboardInterrupt

    monkeypatch.setattr(train, "read", stop)
    outcome = amopo(*command("out")[3:])
    assert outcome.status == 130 and outcome.err == "amopo: interrupted; nothing has been trained yet\n"


def test_the_checkpoint_survives_what_ends_a_training(amopo, command, monkeypatch, tmp_path):
    """With save_total_limit=1 and load_best_model_at_end, transformers deletes all checkpoints but the best."""
    from amopo.cli import stop

    class AtStepFive:
        def __init__(self, device):
            self.calls = 0

        def later(self, mine):
            self.calls += 1
            return self.calls == 5

        def now(self, mine):
            return mine

    monkeypatch.setattr(stop, "Agreement", AtStepFive)
    best = ["--load-best-model-at-end", "--save-total-limit=1", "--eval-steps=2", "--eval-strategy=steps"]
    best += ["--metric-for-best-model=loss", "--greater-is-better", "--save-strategy=steps", "--save-steps=2"]
    outcome = amopo(*command("out")[3:], *best)
    assert outcome.status == 130 and "step 5 of" in outcome.err
    assert (tmp_path / "out" / "checkpoint-5" / "optimizer.pt").is_file()


def test_without_an_optimizer_in_the_checkpoint_no_way_on_is_promised(amopo, command, monkeypatch):
    from amopo.cli import stop

    monkeypatch.setattr(stop.Agreement, "later", lambda self, mine: True)
    outcome = amopo(*command("out")[3:], "--save-only-model")
    assert outcome.status == 130 and "cannot go on" in outcome.err and "--resume" not in outcome.err


def test_one_rank_needs_no_agreement():
    import torch

    agreement = Agreement(torch.device("cpu"))
    assert agreement.later(True) and not agreement.later(False) and agreement.now(True)


@pytest.mark.parametrize(
    ("argv", "expected"),
    [
        (["train", "--a", "1"], "amopo train --a 1 --resume"),
        (["train", "--resume", "runs/x/checkpoint-3", "--a=1"], "amopo train --a=1 --resume"),
        (["train", "--resume", "--a=1", "--force"], "amopo train --a=1 --resume"),
        (["train", "--resume=x", "--force=true", "--out", "my runs"], "amopo train --out 'my runs' --resume"),
    ],
)
def test_the_command_that_goes_on_is_the_one_given_with_resume(argv, expected, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["/somewhere/bin/amopo"])
    monkeypatch.delenv("RANK", raising=False)
    assert resume_command(argv) == expected
