"""The commands of docs/integrations/clusters.md train on two CPU ranks, each as one process does."""

from __future__ import annotations

import dataclasses
import json
import os
import re
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
import torch
from launch import ROOT, environment, needs_deepspeed

pytest.importorskip("transformers")
from safetensors.torch import load_file  # noqa: E402

pytestmark = [pytest.mark.distributed, pytest.mark.timeout(1600)]
LIMIT = 1000  # seconds; about 10 on two free cores
ENGINES = ("ddp", "zero2", "zero3", "zero3_offload", "fsdp2")
PAGE = (ROOT / "docs" / "integrations" / "clusters.md").read_text(encoding="utf-8")
PAGE = re.sub(r"```.*?```", "", PAGE, flags=re.S)  # the blocks run elsewhere
SETTINGS = """
model: scratch:nano
template: brief
data: {data}
objectives: [a, b]
eval_fraction: 0.3
imitation_epochs: 1
imitation_tokens: 512
tokens_per_batch: 256
gradient_accumulation_steps: 20  # more than there are micro-batches: every step takes all samples
num_train_epochs: 3
learning_rate: 1.0e-3
adam_epsilon: 1.0e-4
logging_steps: 1
save_strategy: "no"
samples: 0
report: false
use_cpu: true
"""


def needs(engine):
    return [needs_deepspeed] if engine.startswith("zero") else []


def on_the_page(start: str) -> str:
    """The command of the page that begins so."""
    found = [command for command in re.findall(r"`([^`]+)`", PAGE) if command.startswith(start)]
    assert found, f"no command on the page begins with {start}"
    return found[0]


@dataclasses.dataclass
class Place:
    """A folder with data, settings, and programs that a launcher of this interpreter's environment would find."""

    folder: Path
    rows: list[dict]

    def __post_init__(self) -> None:
        data = self.folder / "data.jsonl"
        data.write_text("".join(json.dumps(row) + "\n" for row in self.rows))
        self.settings = self.folder / "mine.yaml"
        self.settings.write_text(SETTINGS.format(data=data))
        self.program("torchrun", f'exec {sys.executable} -P -m torch.distributed.run "$@"')
        self.program("deepspeed", f'exec {sys.executable} -P -m deepspeed.launcher.runner "$@"')
        self.program("accelerate", f'exec {sys.executable} -P -m accelerate.commands.accelerate_cli "$@"')

    def program(self, name: str, *lines: str) -> None:
        path = self.folder / "bin" / name
        path.parent.mkdir(exist_ok=True)
        path.write_text("\n".join(["#!/bin/sh", *lines, ""]))
        path.chmod(0o755)

    def start(self, command: str, output: str, *more: str, fsdp: bool = False, **env: str) -> subprocess.Popen:
        """Start a command of the page with these settings."""
        words = shlex.split(command.replace("--config mine.yaml", f"--config {shlex.quote(str(self.settings))}"))
        env = environment(PATH=f"{self.folder / 'bin'}{os.pathsep}{os.environ['PATH']}", NPROC="2", **env)
        if fsdp:
            site = self.folder / "site"
            site.mkdir(exist_ok=True)
            only = 'import os\nif "LOCAL_RANK" in os.environ:\n    import sharding\n    sharding.{}()\n'
            only = only.format("let_fsdp_run_on_cpus_when_asked_for")
            (site / "sitecustomize.py").write_text(only)
            env["PYTHONPATH"] = os.pathsep.join([str(site), env["PYTHONPATH"]])
        return subprocess.Popen(
            [*words, "--output-dir", str(self.folder / output), *more],
            env=env,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
            cwd=ROOT,
        )

    def run(self, *args, **kwargs) -> str:
        """The same, to its end, which must be a good one; what it wrote to stdout."""
        process = self.start(*args, **kwargs)
        out, err = ended(process)
        assert process.returncode == 0, f"{out[-3000:]}\n{err[-6000:]}"
        return out


def ended(process: subprocess.Popen) -> tuple[str, str]:
    try:
        return process.communicate(timeout=LIMIT)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        out, err = process.communicate()
        pytest.fail(f"did not end in {LIMIT} s:\n{out[-2000:]}\n{err[-4000:]}")


@pytest.fixture(scope="module")
def place(tmp_path_factory, rows):
    return Place(tmp_path_factory.mktemp("commands"), rows(14))


@pytest.fixture(scope="module")
def expected(place):
    """Losses and evaluation of one process."""
    from amopo.cli.main import main

    assert main(["train", "--config", str(place.settings), "--output-dir", str(place.folder / "alone")]) == 0
    return found(place.folder / "alone")


def found(folder: Path, weights: str = "model.safetensors") -> dict[str, object]:
    metrics = json.loads((folder / "metrics.json").read_text())
    assert metrics["finished"]
    return {
        "weights": load_file(folder / weights),
        "losses": [row["loss"] for row in metrics["log_history"] if "loss" in row],
        "after": {name: metrics["preferences"]["after"][name] for name in ("loss", "rewards/margins")},
    }


def check(folder: Path, expected: dict[str, object], weights: str = "model.safetensors") -> None:
    got = found(folder, weights)
    assert json.loads((folder / "amopo_run.json").read_text())["settings"]["world_size"] == 2
    assert len(expected["losses"]) == 3 and expected["losses"][0] > expected["losses"][2] + 1e-3, "nothing was learned"
    # Under ZeRO-2 and FSDP2 transformers writes the tied head beside the embeddings.
    head = got["weights"].pop("lm_head.weight", None)
    assert head is None or torch.equal(head, got["weights"]["model.embed_tokens.weight"])
    assert set(got["weights"]) == set(expected["weights"])
    for name, weight in expected["weights"].items():
        torch.testing.assert_close(got["weights"][name], weight, rtol=0, atol=2e-5, msg=lambda text, name=name: name)
    assert got["losses"] == pytest.approx(expected["losses"], rel=1e-4)
    assert got["after"] == pytest.approx(expected["after"], rel=1e-3, abs=1e-5)


def with_torchs_optimizer(place: Place) -> Path:
    """The folder of the examples, but with torch's AdamW for what is offloaded: DeepSpeed would compile its own first,
    which takes minutes."""
    copy = shutil.copytree(ROOT / "examples" / "cluster", place.folder / "cluster")
    config = json.loads((copy / "zero3_offload.json").read_text())
    config |= {"zero_force_ds_cpu_optimizer": False, "zero_allow_untested_optimizer": True}
    (copy / "zero3_offload.json").write_text(json.dumps(config))
    return copy


@pytest.mark.parametrize("engine", [pytest.param(engine, marks=needs(engine)) for engine in ENGINES])
def test_torchrun_sh_trains_under_every_engine(engine, place, expected):
    command = on_the_page("examples/cluster/torchrun.sh").replace("torchrun.sh ddp", f"torchrun.sh {engine}")
    assert f"torchrun.sh {engine}" in command and (f"torchrun.sh {engine}" in PAGE or f"`{engine}`" in PAGE)
    if engine == "zero3_offload":
        command = command.replace("examples/cluster", shlex.quote(str(with_torchs_optimizer(place))))
    out = place.run(command, engine, fsdp=engine == "fsdp2")
    assert out.count("saved in") == 1, "one process speaks"
    check(place.folder / engine, expected)


@pytest.mark.parametrize("engine", [pytest.param(e, marks=needs(e)) for e in ("ddp", "fsdp2", "zero3")])
def test_accelerate_launch_trains_with_every_configuration(engine, place, expected):
    command = on_the_page("accelerate launch").replace("accelerate_zero3", f"accelerate_{engine}")
    command = command.replace("launch ", "launch --num_processes 2 --main_process_port 0 ")
    place.run(command, f"accelerate-{engine}", fsdp=engine == "fsdp2")
    check(place.folder / f"accelerate-{engine}", expected)


@needs_deepspeed
def test_the_launcher_of_deepspeed_trains(place, expected):
    command = on_the_page("deepspeed --module").replace("zero3", "zero2")
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    command = command.replace("--module", f"--num_gpus 2 --master_port {port} --module")
    place.run(command, "launched-by-deepspeed")
    check(place.folder / "launched-by-deepspeed", expected)


# ---- a model that is loaded, as every large one is: in pieces from the beginning under ZeRO-3 ----

LOADED = [pytest.param(engine, marks=needs(engine)) for engine in ("zero3", "fsdp2")]


@pytest.fixture(scope="module")
def saved(place, expected):
    """The model that `expected` trained."""
    return str(place.folder / "alone" / "imitation")


def under(engine: str) -> str:
    return on_the_page("examples/cluster/torchrun.sh").replace("torchrun.sh ddp", f"torchrun.sh {engine}")


@pytest.mark.parametrize("engine", LOADED)
def test_a_saved_model_trains_with_gradient_checkpointing_as_without(engine, place, saved, expected):
    flags = ("--model", saved, "--gradient-checkpointing")
    place.run(under(engine), f"saved-{engine}", *flags, fsdp=engine == "fsdp2")
    check(place.folder / f"saved-{engine}", expected)


@pytest.fixture(scope="module")
def adapters(place, saved):
    """Flags of a run that trains adapters, and what one process makes of them."""
    from amopo.cli.main import main

    flags, folder = ("--model", saved, "--lora-r", "4", "--learning-rate", "1e-2"), place.folder / "adapters"
    assert main(["train", "--config", str(place.settings), "--output-dir", str(folder), *flags]) == 0
    return flags, found(folder, "adapter_model.safetensors")


@pytest.mark.parametrize("engine", LOADED)
def test_adapters_of_a_saved_model_train_with_gradient_checkpointing_as_without(engine, place, adapters):
    flags, expected = adapters
    place.run(under(engine), f"adapters-{engine}", *flags, "--gradient-checkpointing", fsdp=engine == "fsdp2")
    check(place.folder / f"adapters-{engine}", expected, "adapter_model.safetensors")


@needs_deepspeed
@pytest.mark.parametrize("ranks", [1, 2])
def test_a_dry_run_under_zero3_says_of_a_saved_model_what_it_says_without(ranks, place, saved, capsys):
    """The model is not cut into pieces, which would have no shapes, whether there are ranks or not."""
    check_plan(place, ["--model", saved], ranks, capsys)


@needs_deepspeed
def test_a_dry_run_under_zero3_says_of_adapters_what_it_says_without(place, adapters, capsys):
    check_plan(place, ["--model", str(place.folder / "adapters")], 2, capsys)


def check_plan(place: Place, flags: list[str], ranks: int, capsys: pytest.CaptureFixture) -> None:
    from amopo.cli.main import main

    command = under("zero3")
    if ranks == 1:
        command = f"{sys.executable} -P -m amopo train --config mine.yaml --deepspeed examples/cluster/zero3.json"
    out = place.run(command, "never", *flags, "--dry-run")
    capsys.readouterr()
    rest = ["--config", str(place.settings), "--output-dir", str(place.folder / "never"), "--dry-run"]
    assert main(["train", *rest, *flags]) == 0
    plan = capsys.readouterr().out
    for beginning in ("model", "samples", "tokens per epoch"):
        line = re.search(rf"^{beginning}: .*$", plan, re.MULTILINE)[0]
        assert out.count(line) == 1, f"{line}\n{out}"
    assert re.search(r"head: [1-9]\d* rows x [1-9]\d* vocabulary x [1-9]\d* hidden", out)


# ---- Slurm: srun and scontrol of one node, which start what they are given ----

JOB = {"SLURM_JOB_ID": "4711", "SLURM_NNODES": "1", "SLURM_JOB_NODELIST": "localhost"}


def add_slurm(place: Place, *, srun: str) -> str:
    place.program("scontrol", '[ "$1 $2" = "show hostnames" ] && echo "$3"')
    place.program("srun", srun)
    assert "sbatch examples/cluster/slurm.sh" in PAGE
    return "examples/cluster/slurm.sh"


@pytest.mark.parametrize("engine", ENGINES)
def test_the_slurm_script_starts_torchrun_with_the_engine_and_the_paper_s_settings(engine, place):
    script = add_slurm(place, srun='printf "%s\\n" "$@"')
    assert subprocess.run(["bash", "-n", ROOT / script]).returncode == 0
    words = place.run(script, "never", "--learning-rate", "5e-7", ENGINE=engine, **JOB).split("\n")
    assert words[:2] == ["--kill-on-bad-exit=1", "torchrun"]
    given = dict(zip(words[2:], words[3:]))
    assert given["--nnodes"] == "1" and given["--rdzv-id"] == "4711" and given["--rdzv-endpoint"] == "localhost:24711"
    assert given["-m"] == "amopo" and given["--config"] == "examples/cluster/paper.yaml"
    assert given["--learning-rate"] == "5e-7"
    assert given.get("--deepspeed") == (f"examples/cluster/{engine}.json" if engine.startswith("zero") else None)
    assert given.get("--fsdp-config") == ("examples/cluster/fsdp2.json" if engine == "fsdp2" else None)
    assert all((ROOT / word).is_file() for word in words if word.startswith("examples/"))


def test_an_engine_that_does_not_exist_is_named(place):
    for script in (add_slurm(place, srun="exit 9"), "examples/cluster/torchrun.sh zero4"):
        process = place.start(script, "never", ENGINE="zero4", **JOB)
        _, err = ended(process)
        assert process.returncode == 2 and "unknown engine zero4" in err and "zero3_offload" in err


def test_a_slurm_job_that_is_told_to_end_saves_a_checkpoint(place):
    """Slurm signals every process of a step: torchrun, which passes the signal on, and the ranks."""
    script = add_slurm(place, srun='[ "$1" = --kill-on-bad-exit=1 ] && shift; exec "$@"')
    mine = dict(line.split(": ", 1) for line in place.settings.read_text().splitlines() if line)
    mine |= {"objectives": "a,b", "num_train_epochs": "500", "bf16": "false", "gradient_accumulation_steps": "2"}
    flags = [word for name, value in mine.items() for word in (f"--{name}", value.strip('"'))]
    folder = place.folder / "slurm"
    process = place.start(script, "slurm", *flags, ENGINE="ddp", **JOB)
    log, end = folder / "amopo_log.jsonl", time.monotonic() + LIMIT
    while not (log.is_file() and log.read_text().count("\n") >= 3):
        assert process.poll() is None and time.monotonic() < end, process.communicate()[1][-6000:]
        time.sleep(0.05)
    launcher = psutil.Process(process.pid)
    waits = launcher.environ()["TORCH_ELASTIC_SHUTDOWN_TIMEOUT"]
    for one in (launcher, *launcher.children(recursive=True)):
        one.terminate()
    _, err = ended(process)
    assert process.returncode != 0
    (checkpoint,) = folder.glob("checkpoint-*")
    assert "is saved in" in err and f"{checkpoint}; go on with: " in err and "interrupted at once" not in err, err[
        -3000:
    ]
    assert (checkpoint / "optimizer.pt").is_file() and (checkpoint / "rng_state_1.pth").is_file()
    assert int(waits) < int(re.search(r"--signal=TERM@(\d+)", (ROOT / script).read_text())[1])


def test_torchrun_waits_for_the_checkpoint_as_long_as_the_scripts_say(monkeypatch):
    from torch.distributed.launcher.api import LaunchConfig

    if "shutdown_timeout" not in {field.name for field in dataclasses.fields(LaunchConfig)}:
        pytest.skip("this torch always waits 30 s")
    for script in ("slurm.sh", "torchrun.sh"):
        text = (ROOT / "examples" / "cluster" / script).read_text()
        (name, seconds) = re.search(r"export (\w+)=\$\{\1:-(\d+)\}", text).groups()
        monkeypatch.setenv(name, seconds)
        assert LaunchConfig(min_nodes=1, max_nodes=1, nproc_per_node=2).shutdown_timeout == int(seconds) > 30
