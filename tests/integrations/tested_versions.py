"""What docs/integrations/versions.md says, and what is pinned; read by the tests of every environment."""

from __future__ import annotations

import importlib.metadata
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
_ROW = re.compile(r"^\| `([\w-]+)` \| ([\w.]+) \|", re.M)


def _part(title: str) -> dict[str, str]:
    """Package -> version of the table under a heading of the page."""
    text = (ROOT / "docs" / "integrations" / "versions.md").read_text(encoding="utf-8")
    parts = {part.partition("\n")[0]: part for part in text.split("\n## ")[1:]}
    return dict(_ROW.findall(parts[title]))


def versions() -> dict[str, str]:
    """Package -> version, of the environments of `make test` and `make test-deepspeed`."""
    return _part("amopo")


def llamafactory_versions() -> dict[str, str]:
    """The same of the environment of `make test-llamafactory`."""
    return _part("LLaMA-Factory")


def axolotl_versions() -> dict[str, str]:
    """The same of the environment of `make test-axolotl`."""
    return _part("axolotl")


def pins(name: str) -> dict[str, str]:
    """Package -> version of a file in requirements/."""
    lines = (ROOT / "requirements" / name).read_text(encoding="utf-8").splitlines()
    return dict(line.split("==") for line in lines if line and not line.startswith("#"))


def check_installed(package: str, version: str) -> None:
    """Fail if another version is installed here; skip where there is none."""
    try:
        installed = importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        pytest.skip(f"{package} is not installed here")
    assert installed.split("+")[0] == version, "update docs/integrations/versions.md and the pins together"
