"""install() changes LLaMA-Factory in memory, once, and can be taken back."""

from __future__ import annotations

import importlib
import importlib.metadata
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("llamafactory.hparams", reason="LLaMA-Factory is not installed here; run make test-llamafactory")

import llamafactory.data.converter as converter  # noqa: E402
import llamafactory.data.loader as loader  # noqa: E402
import llamafactory.hparams.parser as parser  # noqa: E402
import llamafactory.launcher as launcher  # noqa: E402
import llamafactory.train.dpo.trainer as dpo_trainer  # noqa: E402
import llamafactory.train.tuner as tuner  # noqa: E402

from amopo.integrations.llamafactory import TESTED, check_host, install  # noqa: E402


def state():
    return (
        dpo_trainer.CustomDPOTrainer,
        tuner.run_dpo,
        importlib.import_module("llamafactory.train.dpo").run_dpo,
        loader.PairwiseDatasetProcessor,
        launcher.__file__,
        list(parser._TRAIN_ARGS),
        dict(converter.DATASET_CONVERTERS),
    )


def test_everything_is_replaced_and_everything_comes_back():
    before = state()
    installation = install()
    during = state()
    assert all(old != new for old, new in zip(before, during, strict=True))
    assert issubclass(dpo_trainer.CustomDPOTrainer, before[0])
    installation.remove()
    assert state() == before
    installation.remove()


def test_a_second_install_is_the_first():
    with install() as installation:
        during = state()
        assert install() is installation
        assert state() == during
    assert not installation.is_active
    with install() as again:
        assert again is not installation and again.is_active


def test_what_somebody_else_replaced_is_not_overwritten():
    installation = install()
    ours = tuner.run_dpo
    try:
        tuner.run_dpo = lambda *args: None
        with pytest.raises(RuntimeError, match=r"llamafactory.train.tuner.run_dpo was replaced by somebody else"):
            installation.remove()
        assert installation.is_active
    finally:
        tuner.run_dpo = ours
        installation.remove()


def test_the_installed_version_is_a_tested_one():
    assert check_host() == importlib.metadata.version("llamafactory") and check_host() in TESTED


def test_an_unknown_version_is_refused_unless_asked_for(monkeypatch):
    before = state()
    monkeypatch.setattr(importlib.metadata, "version", lambda name: "0.8.0")
    with pytest.raises(RuntimeError, match=r"LLaMA-Factory 0\.8\.0 was not tested.*any_version=True"):
        install()
    assert state() == before
    assert check_host(any_version=True) == "0.8.0"


def test_a_missing_function_is_refused_by_name(monkeypatch):
    before = state()
    monkeypatch.setattr(dpo_trainer.CustomDPOTrainer, "concatenated_forward", lambda self, model, batch: None)
    with pytest.raises(RuntimeError, match=r"CustomDPOTrainer\.concatenated_forward takes no is_ref_model"):
        install()
    monkeypatch.delattr(dpo_trainer.CustomDPOTrainer, "compute_preference_loss")
    with pytest.raises(RuntimeError, match=r"CustomDPOTrainer\.compute_preference_loss is missing"):
        install()
    monkeypatch.delattr(loader, "PairwiseDatasetProcessor")
    with pytest.raises(RuntimeError, match=r"llamafactory\.data\.loader\.PairwiseDatasetProcessor is missing"):
        install()
    monkeypatch.undo()
    assert state() == before


@pytest.mark.parametrize("name", ["USE_MCA", "USE_RAY", "USE_V1"])
def test_ways_of_running_without_effect_are_refused(name, monkeypatch):
    monkeypatch.setenv(name, "1")
    with pytest.raises(RuntimeError, match=name):
        install()


def test_torchrun_starts_a_file_that_installs():
    with install():
        worker = Path(launcher.__file__)
    code = f"""
import runpy, sys, types
sys.argv = ["{worker}", "x.yaml"]
sys.path.insert(0, r"{worker.parent}")
import llamafactory.train.tuner as tuner
seen = []
tuner.run_exp = lambda: seen.append((tuner.run_dpo.__module__, list(sys.path)))
runpy.run_path(r"{worker}", run_name="__main__")
(module, path), = seen
assert module == "amopo.integrations.llamafactory.workflow", module
assert r"{worker.parent}" not in path
"""
    done = subprocess.run([sys.executable, "-P", "-c", code], capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr


def test_importing_the_package_does_not_import_llamafactory():
    code = "import sys, amopo.integrations.llamafactory; sys.exit('llamafactory' in sys.modules)"
    assert subprocess.run([sys.executable, "-P", "-c", code], timeout=240).returncode == 0
