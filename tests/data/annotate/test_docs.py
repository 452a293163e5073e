"""The example of docs/annotate.md works as it stands there."""

from __future__ import annotations

import json
import os
import re
import shlex
import socket
import subprocess
import sys
import time
from pathlib import Path

from amopo.cli import console
from amopo.cli.annotate_settings import options
from amopo.data.annotate.retry import LONGEST_WAIT

ROOT = Path(__file__).resolve().parents[3]
PAGE = (ROOT / "docs" / "annotate.md").read_text(encoding="utf-8")


def block(language: str, containing: str) -> str:
    blocks = re.findall(r"^```(\w*)\n(.*?)^```$", PAGE, re.DOTALL | re.MULTILINE)
    (found,) = [text for name, text in blocks if name == language and containing in text]
    return found


def free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return sock.getsockname()[1]


def wait_for(port: int, process: subprocess.Popen) -> None:
    while process.poll() is None:
        try:
            socket.create_connection(("127.0.0.1", port), timeout=1).close()
            return
        except OSError:
            time.sleep(0.05)
    raise AssertionError("the stub ended")


def test_the_example_runs_and_says_what_the_page_says(tmp_path, capsys, monkeypatch):
    from amopo.cli.main import main

    for name in [name for name in os.environ if name.lower().endswith("_proxy")]:
        monkeypatch.delenv(name)
    (tmp_path / "judge_stub.py").write_text(block("python", "class Judge"))
    (tmp_path / "data.jsonl").write_text(block("json", '"q1"'))
    monkeypatch.chdir(tmp_path)
    for seconds in ("PATIENCE", "PLAIN_EVERY"):  # no line of progress, however slow the machine is
        monkeypatch.setattr(console, seconds, 1e9)
    stub, *commands = block("bash", "judge_stub.py").replace("\\\n", " ").strip().splitlines()
    port = free_port()
    assert stub == "python judge_stub.py 8000 &"
    process = subprocess.Popen([sys.executable, "judge_stub.py", str(port)], stderr=subprocess.DEVNULL)
    try:
        wait_for(port, process)
        dry, full = [shlex.split(command, comments=True)[1:] for command in commands]
        assert main([argument.replace("8000", str(port)) for argument in dry]) == 0
        assert "nothing was sent" in capsys.readouterr().out and not Path("scored.jsonl").exists()
        assert main([argument.replace("8000", str(port)) for argument in full]) == 0
    finally:
        process.kill()
        process.wait(60)
    said = re.sub(r"\d+ s,", "0 s,", capsys.readouterr().out)
    assert said == block("", "4 distinct questions")
    rows = [json.loads(line) for line in Path("scored.jsonl").read_text().splitlines()]
    scores = [[r["scores"]["instruction_following"] for r in row["responses"]] for row in rows]
    assert scores == [[1, 4], [2, 4]]


def test_the_page_names_defaults_and_flags_as_they_are():
    known = {option.flag: option.default for option in options()} | {"--config": None}
    for flag in re.findall(r"--[a-z][a-z-]+", PAGE):
        assert flag in known, flag
    for flag, value in re.findall(r"`(--[a-z-]+)(?: N)?`[^.|]*? \((\d+)\)", PAGE):
        assert known[flag] == int(value), flag
    assert f"above {LONGEST_WAIT / 60:.0f} minutes" in PAGE
