"""The commands of docs/integrations/axolotl.md, and what axolotl itself makes of the example's YAML."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("axolotl.core.trainers.base", reason="axolotl is not installed here; run make test-axolotl")

import yaml  # noqa: E402
from axolotl.core.trainers.base import AxolotlTrainer  # noqa: E402
from axolotl.integrations.base import PluginManager  # noqa: E402

from amopo.data import build_pairs, read_records  # noqa: E402
from amopo.integrations.axolotl import AMoPOCollator, Settings  # noqa: E402

ROOT = Path(__file__).resolve().parents[3]
PAGE = (ROOT / "docs" / "integrations" / "axolotl.md").read_text(encoding="utf-8")
OBJECTIVES = ("helpfulness", "correctness")


@pytest.fixture(scope="module")
def checkout(tmp_path_factory):
    """A folder with the examples, where commands of the page write their runs/."""
    folder = tmp_path_factory.mktemp("checkout")
    (folder / "examples").symlink_to(ROOT / "examples")
    return folder


@pytest.fixture(scope="module")
def outputs(checkout):
    """What the page's commands for the example print."""
    commands = [line for line in re.findall(r"^python .*$", PAGE, re.M) if not line.startswith("python3")]
    assert len(commands) == 2
    environment = {**os.environ, "AXOLOTL_DO_NOT_TRACK": "1", "HF_HOME": str(checkout / "hf")}
    found = []
    for command in commands:
        words = [sys.executable, *shlex.split(command, comments=True)[1:]]
        done = subprocess.run(words, cwd=checkout, env=environment, capture_output=True, text=True, timeout=240)
        assert done.returncode == 0, f"{done.stdout[-2000:]}\n{done.stderr[-4000:]}"
        found.append(done.stdout + done.stderr)
    return found


@pytest.mark.timeout(600)
def test_the_commands_on_the_page_train_to_the_loss_on_the_page(outputs, checkout):
    prepared, trained = outputs
    assert "256 prompts in" in prepared
    losses = [float(value) for value in re.findall(r"'eval_loss': '?([\d.]+)", trained)]
    on_the_page = float(re.search(r"`eval_loss` (\d\.\d+)", PAGE)[1])
    assert losses[-1] == pytest.approx(on_the_page, abs=0.02) and losses[0] > losses[-1]
    assert re.search(r"'eval_rewards/accuracies/correctness': '?[01]", trained)
    assert (checkout / "runs" / "axolotl" / "out" / "model.safetensors").is_file()


@pytest.mark.timeout(600)
def test_axolotl_s_own_path_gets_our_data_collator_and_trainer(outputs, checkout, monkeypatch):
    """Configuration, plugin manager, builder and training of axolotl, as its command calls them."""
    from axolotl.cli.config import load_cfg
    from axolotl.train import train
    from axolotl.utils.dict import DictDefault

    monkeypatch.setattr(PluginManager, "_instance", None)
    monkeypatch.chdir(checkout)
    settings = yaml.safe_load((ROOT / "examples" / "axolotl" / "amopo.yaml").read_text(encoding="utf-8"))
    settings |= {"output_dir": "runs/own", "max_steps": 3, "logging_steps": 1, "amopo_weights": [1.0, 3.0]}
    cfg = load_cfg(DictDefault(settings))
    manager = PluginManager.get_instance()

    meta = manager.load_datasets(cfg, preprocess=False)
    records = read_records(cfg["datasets"][0]["path"], objectives=OBJECTIVES)
    held_out = len(build_pairs(records, objectives=OBJECTIVES)[0]) - len(meta.train_dataset)
    assert len(meta.eval_dataset) == held_out > 0 and meta.total_num_steps == 3
    assert set(meta.train_dataset.column_names) == {"prompts", "chosen", "rejected", "sample_id", "length"}

    _, _, trainer = train(cfg=cfg, dataset_meta=meta)
    assert isinstance(trainer, AxolotlTrainer) and trainer.amopo == Settings(OBJECTIVES, beta=2.0, weights=(1.0, 3.0))
    assert isinstance(trainer.data_collator, AMoPOCollator) and isinstance(trainer.eval_data_collator, AMoPOCollator)
    steps = [entry for entry in trainer.state.log_history if "loss" in entry]
    assert [entry["step"] for entry in steps] == [1, 2, 3]
    for entry in steps:
        assert float(entry["amopo/alpha/correctness"]) == pytest.approx(0.75, abs=1e-3)
        margins = [float(entry[f"rewards/margins/{name}"]) for name in OBJECTIVES]
        assert float(entry["rewards/margins"]) == pytest.approx(sum(margins) / 2, abs=2e-2)
