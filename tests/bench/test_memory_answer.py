"""The answer of docs/memory.md is what the planner computes now, and its commands are commands."""

from __future__ import annotations

import json
import shlex
import shutil
from pathlib import Path

import pytest

from amopo.cli.main import main
from bench import memory_answer
from bench.common.results import Recorder

ROOT = Path(__file__).parents[2]
STORED = json.loads((ROOT / "bench/results/memory/answer.json").read_text())


def test_figures_and_document_are_what_the_plan_says():
    assert memory_answer.main(["--check"]) == 0, "run python -m bench.memory_answer"


def printed(capsys, command: str) -> dict:
    """What a command of the document prints as JSON."""
    name, *words = shlex.split(command)
    assert name == "amopo" and main([*words, "--json"]) == 0
    return json.loads(capsys.readouterr().out)


@pytest.mark.parametrize("row", [STORED["rows"][0], STORED["rows"][-1]], ids=lambda row: row["name"])
def test_a_rows_command_prints_its_figures(capsys, row):
    found = printed(capsys, row["command"])
    assert (found["peak"], found["fits"], found["largest_tokens"]) == (row["peak"], row["fits"], row["largest_tokens"])
    assert {phase: sum(part.values()) for phase, part in found["phases"].items()} == row["phases"]
    assert found["methods"] == row["methods"]


def test_a_smallest_cluster_is_what_its_command_finds(capsys):
    row = STORED["find"][0]
    found = printed(capsys, row["command"])["smallest_cluster"]
    assert found == {name: row[name] for name in ("gpus", "engine", "peak", "host")}


def test_the_clusters_that_are_asked_for_are_there():
    commands = [row["command"] for row in STORED["rows"] + STORED["find"]]
    for wanted in ("--gpus 32 --gpu-memory 80GB", "--gpus 8 --gpu-memory 80GB", "--gpu-memory 141GB --lora 16"):
        assert any(wanted in command for command in commands)
    for memory in ("40GB", "80GB"):
        assert any(f"--gpu-memory {memory}" in command and "--find" in command for command in commands)


def test_a_figure_that_is_not_the_plans_is_noticed(tmp_path, capsys):
    shutil.copytree(ROOT / "bench/results/memory", tmp_path / "memory")
    file = tmp_path / "memory/answer.json"
    (tmp_path / "memory.md").write_text((ROOT / "docs/memory.md").read_text())
    arguments = ["--results", str(tmp_path), "--docs", str(tmp_path), "--check"]
    assert memory_answer.main(arguments) == 0
    peak = str(STORED["rows"][0]["peak"])
    file.write_text(file.read_text().replace(peak, str(int(peak) + 1)))
    assert memory_answer.main(arguments) == 1
    assert "run python -m bench.memory_answer" in capsys.readouterr().err


def test_a_measured_peak_takes_the_place_of_pending(tmp_path):
    """What CUDA holds outside of the allocator is added; a tiny model's figures do not count."""
    run = {"machine": {"device": "GPU"}, "versions": {}, "command": "", "date": "2026-01-02"}
    recorder = Recorder(tmp_path, "gpu", run)
    key = {"shape": "qwen2.5-32b-lora", "budget": 8192, "samples": 2, "provider": "amopo pair"}
    info = {"peak_bytes": 70 << 30, "outside_of_allocator_bytes": 1 << 30}
    recorder.put("memory_model", {**key, "small": True}, stats={"median": 1.0}, info={"peak_bytes": 7})
    answer = memory_answer.make_answer(tmp_path)
    assert all(row["measured"] is None for row in answer["rows"])
    recorder.put("memory_model", {**key, "small": False}, stats={"median": 1.0}, info=info)
    answer = memory_answer.make_answer(tmp_path)
    assert [row["name"] for row in answer["rows"] if row["measured"]] == ["one"]
    text = memory_answer.render(answer)
    assert "| 71.0 |" in text and text.count("pending") == len(answer["rows"]) - 1


def test_the_pictures_are_drawn(tmp_path):
    pytest.importorskip("matplotlib")
    memory_answer.draw(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {"memory-32b.png", "memory-32b-methods.png"}
