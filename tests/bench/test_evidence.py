"""The evidence of a GPU machine: parts, what narrows them, what is said when time runs out."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from bench import evidence

ROOT = Path(__file__).parents[2]


def test_every_part_is_a_command_that_runs_short_of_nine_minutes(tmp_path):
    assert evidence.SECONDS < 9 * 60
    for part in evidence.PARTS:
        full, dry = (evidence.command_of(part, tmp_path, dry_run) for dry_run in (False, True))
        assert ("--full" in full) == (part != "tests") and "--full" not in dry and "--shape" not in dry
        assert all((ROOT / word).exists() for word in full if word.endswith(".py"))


def program(monkeypatch, code: str) -> None:
    monkeypatch.setattr(evidence, "command_of", lambda *_: [evidence.sys.executable, "-c", code])


def test_a_part_that_runs_out_of_time_says_so_and_keeps_its_log(tmp_path, monkeypatch):
    program(monkeypatch, "import time; print('here', flush=True); time.sleep(600)")
    assert evidence.run_part("tests", tmp_path, dry_run=False, seconds=10.0) == 124
    assert (tmp_path / "tests.log").read_text() == "here\n"


def test_a_part_that_a_signal_ends_is_a_failure(tmp_path, monkeypatch):
    program(monkeypatch, "import os; os.kill(os.getpid(), 9)")
    assert evidence.run_part("tests", tmp_path, dry_run=False, seconds=240.0) == 128 + 9


@pytest.mark.parametrize("codes, status", [([0, 0], 0), ([0, 1], 1), ([124, 0], 124), ([137, 1], 137)])
def test_the_exit_status_is_that_of_the_first_failing_part(tmp_path, monkeypatch, codes, status):
    left = iter(codes)
    monkeypatch.setattr(evidence, "run_part", lambda *_, **__: next(left))
    assert evidence.main(["--out", str(tmp_path), "--part", "tests", "--part", "small"]) == status


@pytest.fixture
def runs(monkeypatch):
    seen = []

    def run_part(part, out, *, seconds, more, **_):
        seen.append((part, seconds, more))
        return 0

    monkeypatch.setattr(evidence, "run_part", run_part)
    return seen


def test_options_of_the_benchmarks_are_handed_on_and_shapes_narrow(tmp_path, runs, capsys):
    words = ["--shape=2.5-7b-2048", "--providers", "products,amopo"]
    assert evidence.main(["--out", str(tmp_path), *words]) == 0
    assert [part for part, *_ in runs] == ["tests", "head-full-7b", "head-frozen-7b"]
    more = runs[-1][2]
    command = evidence.command_of("head-full-7b", tmp_path, False, more)
    shapes = [text for option, text in zip(command, command[1:]) if option == "--shape"]
    assert shapes == ["2.5-7b", "2.5-7b-2048"] and command[command.index("--providers") + 1] == "products,amopo"
    assert "--providers" not in evidence.command_of("tests", tmp_path, False, more)
    assert "head-full-14b: left out, it has no such shape" in capsys.readouterr().out


def test_a_shape_that_no_part_has_is_refused(tmp_path, runs, capsys):
    with pytest.raises(SystemExit):
        evidence.main(["--out", str(tmp_path), "--part", "memory-head", "--shape", "14b-2048"])
    assert "no part has a shape that contains what --shape 14b-2048 asks for" in capsys.readouterr().err and not runs


def test_memory_of_whole_models_has_a_part_per_size(tmp_path, runs, capsys):
    assert evidence.main(["--out", str(tmp_path), "--shape", "2.5-32b"]) == 0
    assert [part for part, *_ in runs] == ["tests", "memory-32b", "memory-32b-largest", "memory-32b-largest-more"]
    assert "memory-7b: left out, it has no such shape" in capsys.readouterr().out


def test_all_parts_share_the_time_they_are_given(tmp_path, monkeypatch, runs, capsys):
    clock = iter([0.0, 0.0, 500.0, 550.0])
    monkeypatch.setattr(evidence.time, "monotonic", lambda: next(clock))
    words = ["--part", "tests", "--part", "small", "--part", "memory-head"]
    assert evidence.main(["--out", str(tmp_path), "--within", "580", *words]) == 124
    assert [(part, seconds) for part, seconds, _ in runs] == [("tests", 525.0), ("small", 80.0)]
    assert "memory-head: not run, no time is left" in capsys.readouterr().out


def test_unpacked_wheels_of_the_caller_stay_on_the_path_behind_the_checkout():
    assert evidence.search_path(None) == os.pathsep.join([".", "kernels"])
    assert evidence.search_path("peers:.:kernels") == os.pathsep.join([".", "kernels", "peers"])


@pytest.mark.skipif(shutil.which("make") is None, reason="make is not installed")
@pytest.mark.parametrize("given, seen", [(None, ".:kernels"), ("/peers", ".:kernels:/peers")])
def test_make_keeps_the_callers_path(given, seen):
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    environment |= {} if given is None else {"PYTHONPATH": given}
    command = ["make", "--no-print-directory", "--eval", "show-path:;@echo $$PYTHONPATH", "show-path"]
    shown = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=True)
    assert shown.stdout.strip() == seen
