"""What docs/memory.md says of plan and run: flags that these commands have."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

pytest.importorskip("transformers")
from transformers.training_args import OptimizerNames  # noqa: E402

from amopo.cli import memory_plan, train  # noqa: E402

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs/memory.md").read_text(encoding="utf-8")
TABLE = PAGE.split("## From plan to run")[1].split("\n## ")[0]
LINES = [line for line in TABLE.splitlines() if line.startswith("| `--")]
ROWS = [[cell.strip() for cell in line.strip("|").split("|")] for line in LINES]


def flags(cell):
    return re.findall(r"--([a-z][a-z0-9-]*)", cell)


@pytest.mark.parametrize("plan, run", ROWS, ids=[row[0] for row in ROWS])
def test_both_commands_have_the_flags_that_the_page_names(plan, run):
    known = [{option.name.replace("_", "-") for option in command.options()} for command in (memory_plan, train)]
    assert flags(plan) and set(flags(plan)) <= known[0]
    assert set(flags(plan) if run == "the same" else flags(run)) <= known[1]
    if "--optim " in run:
        assert re.search(r"--optim (\w+)", run)[1] in {name.value for name in OptimizerNames}
    if "fsdp2.json" in run:
        assert "cpu_offload" in json.loads((ROOT / "examples/cluster/fsdp2.json").read_text())
