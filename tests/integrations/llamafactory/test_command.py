"""The commands of docs/integrations/llamafactory.md, and the same under torchrun on two CPU ranks."""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("llamafactory.hparams", reason="LLaMA-Factory is not installed here; run make test-llamafactory")

import yaml  # noqa: E402

ROOT = Path(__file__).resolve().parents[3]
PAGE = (ROOT / "docs" / "integrations" / "llamafactory.md").read_text(encoding="utf-8")
COMMANDS = [line for line in re.findall(r"^python .*$", PAGE, re.M) if "examples/" in line]


@pytest.fixture(scope="module")
def checkout(tmp_path_factory):
    """A folder with the examples, where the page's commands write runs/; the first one, which makes data, ran."""
    folder = tmp_path_factory.mktemp("checkout")
    (folder / "examples").symlink_to(ROOT / "examples")
    assert "prepare.py" in COMMANDS[0] and len(COMMANDS) == 3
    run(COMMANDS[0], folder)
    return folder


def run(command, folder, *, limit=280, **env):
    """A command of the page, with this interpreter; torchrun is found beside it."""
    words = [sys.executable, *shlex.split(command, comments=True)[1:]]
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    environment = {**os.environ, "PATH": path, "HF_HOME": str(folder / "hf"), **env}
    done = subprocess.run(words, cwd=folder, env=environment, capture_output=True, text=True, timeout=limit)
    assert done.returncode == 0, f"{done.stdout[-2000:]}\n{done.stderr[-4000:]}"
    return done.stdout + done.stderr


def history(folder):
    return json.loads((folder / "trainer_state.json").read_text())["log_history"]


@pytest.mark.timeout(600)
@pytest.mark.parametrize("command", COMMANDS[1:], ids=["amopo", "simpo"])
def test_a_command_on_the_page_trains_to_what_the_page_says(command, checkout):
    out = run(command, checkout)
    settings = yaml.safe_load((ROOT / shlex.split(command)[-1]).read_text(encoding="utf-8"))
    log = history(checkout / settings["output_dir"])
    losses = [entry["loss"] for entry in log if "loss" in entry]
    assert losses[-1] < losses[0]
    assert not [name for entry in log for name in entry if "logits" in name], "LLaMA-Factory's own stage ran"
    if settings["stage"] == "amopo":
        for name, value in re.findall(r"^(eval_\S+) += +([\d.]+)$", PAGE, re.M):
            said = float(re.search(rf"{name} += +([\d.]+)", out)[1])
            assert said == pytest.approx(float(value), abs=0.02), name
            assert [e[name] for e in log if name in e][-1] == pytest.approx(said, abs=1e-4)


@pytest.mark.timeout(900)
def test_two_processes_under_torchrun_log_what_one_process_logs(checkout):
    """Two ranks of 2 samples make the step that one process makes of 2 micro-batches of 2."""
    found = {}
    for ranks in (1, 2):
        settings = yaml.safe_load((ROOT / "examples" / "llamafactory" / "amopo.yaml").read_text(encoding="utf-8"))
        settings |= {
            "output_dir": f"runs/ranks-{ranks}", "per_device_train_batch_size": 2, "max_steps": 3, "logging_steps": 1,
            "gradient_accumulation_steps": 2 // ranks, "eval_strategy": "no", "val_size": 0.0, "plot_loss": False,
            "max_samples": 24, "use_cpu": True, "warmup_ratio": 0.0,
        }  # fmt: skip
        (checkout / f"ranks-{ranks}.yaml").write_text(yaml.safe_dump(settings))
        env = {"FORCE_TORCHRUN": "1", "NPROC_PER_NODE": "2"} if ranks == 2 else {}
        command = re.sub(r"examples/\S+", f"ranks-{ranks}.yaml", COMMANDS[1])
        out = run(command, checkout, **env)
        assert ("Initializing 2 distributed tasks" in out) == (ranks == 2)
        found[ranks] = [entry for entry in history(checkout / f"runs/ranks-{ranks}") if "loss" in entry]
    assert len(found[1]) == len(found[2]) == 3
    names = [
        "loss",
        "grad_norm",
        "rewards/margins/helpfulness",
        "rewards/chosen/correctness",
        "amopo/alpha/correctness",
    ]
    for one, two in zip(found[1], found[2], strict=True):
        for name in names:
            assert two[name] == pytest.approx(one[name], rel=1e-3, abs=1e-3), (one["step"], name)
    assert found[1][0]["loss"] != found[1][2]["loss"]
