"""What is installed is what stands in the checkout, and installing asks for no more than it needs."""

from __future__ import annotations

import importlib
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

import amopo

ROOT = Path(__file__).resolve().parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]


def names(requirements: list[str]) -> set[str]:
    return {re.split(r"[\[<>=;! ]", requirement)[0] for requirement in requirements}


def test_the_core_needs_torch_alone():
    assert names(PROJECT["dependencies"]) == {"torch"}
    assert PROJECT["requires-python"] == ">=3.11" and PROJECT["license"] == "Apache-2.0"


def test_every_extra_is_there_and_all_holds_them_without_flash():
    extras = PROJECT["optional-dependencies"]
    assert set(extras) == {"hf", "trl", "deepspeed", "peft", "flash", "triton", "data", "plot", "bench", "dev", "all"}
    held = set(re.search(r"\[(.*)\]", extras["all"][0])[1].split(","))
    assert held == set(extras) - {"all", "flash"}
    assert names(extras["flash"]) == {"flash-attn"}


def test_the_console_script_is_the_command():
    module, _, function = PROJECT["scripts"]["amopo"].partition(":")
    assert callable(getattr(importlib.import_module(module), function))


def test_setup_finds_every_package():
    pytest.importorskip("setuptools")
    done = subprocess.run(
        [sys.executable, "setup.py", "--quiet", "--name", "--version"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.split()[-2:] == ["amopo", amopo.__version__]
    from setuptools import find_packages

    found = {*find_packages(str(ROOT), include=["amopo", "amopo.*"]), *find_packages(str(ROOT / "kernels"))}
    folders = {path.parent for base in ("amopo", "kernels/amopo_kernels") for path in (ROOT / base).rglob("*.py")}
    expected = {
        ".".join(folder.relative_to(ROOT / "kernels" if "kernels" in folder.parts else ROOT).parts)
        for folder in folders
    }
    assert found == expected, "a folder without __init__.py would be left out of the wheel"


def test_a_setuptools_that_cannot_read_the_project_is_named_with_the_remedy():
    """That of a new environment of Python 3.11, which --no-build-isolation takes as it is."""
    pytest.importorskip("setuptools")
    code = "import runpy, setuptools; setuptools.__version__ = '65.5.0'; runpy.run_path('setup.py')"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=600)
    assert done.returncode == 1 and "Traceback" not in done.stderr
    assert "needs setuptools 77 or newer, found 65.5.0: pip install -U setuptools wheel" in done.stderr
    build = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["build-system"]
    assert "setuptools>=77" in build["requires"]


def test_both_packages_are_typed():
    assert (ROOT / "amopo" / "py.typed").exists() and (ROOT / "kernels" / "amopo_kernels" / "py.typed").exists()


def test_the_tested_versions_are_pinned_and_torch_without_a_build():
    lines = (ROOT / "requirements" / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pins = dict(line.split("==") for line in lines if line and not line.startswith("#"))
    assert pins["torch"] == "2.13.0"
    assert all(re.fullmatch(r"[0-9][0-9a-z.]*", version) for version in pins.values())
    needed = [
        item
        for extra in ("hf", "trl", "deepspeed", "peft", "data", "plot", "bench", "dev")
        for item in PROJECT["optional-dependencies"][extra]
    ]
    assert names(needed) - {"amopo"} <= set(pins)


def test_the_licence_is_apache_and_whole():
    text = (ROOT / "LICENSE").read_text(encoding="utf-8")
    assert "Apache License" in text and "END OF TERMS AND CONDITIONS" in text


def test_yaml_and_checkpoints_are_read_safely():
    """Nothing in the project reads YAML or a checkpoint in a way that could run code."""
    for path in [*(ROOT / "amopo").rglob("*.py"), *(ROOT / "kernels").rglob("*.py")]:
        text = path.read_text(encoding="utf-8")
        assert not re.search(r"yaml\.(?!safe_load|YAMLError)\w", text), path
        assert all("weights_only=True" in call for call in re.findall(r"torch\.load\([^)]*\)", text)), path
        assert not re.search(r"import pickle|pickle\.loads?\b", text), path
