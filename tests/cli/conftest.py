"""The command, run in this process, and small files for it."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import pytest

from amopo.cli.main import main


@dataclass
class Outcome:
    status: int
    out: str
    err: str

    def one_line(self) -> str:
        """The error's text, after checking that it is all there is on stderr."""
        assert self.status not in (0, None), self.out
        assert self.err.count("\n") == 1 and self.err.startswith("amopo: error: "), self.err
        assert "Traceback" not in self.err
        return self.err.removeprefix("amopo: error: ").rstrip("\n")


@pytest.fixture
def amopo(capsys, monkeypatch):
    """Runs the command with these arguments."""
    monkeypatch.delenv("AMOPO_DEBUG", raising=False)

    def run(*argv: object) -> Outcome:
        status = main([str(argument) for argument in argv])
        captured = capsys.readouterr()
        return Outcome(status, captured.out, captured.err)

    return run


@pytest.fixture
def write(tmp_path):
    """Writes rows (or raw lines) to a JSONL file and gives its path."""

    def to_file(rows: list, name: str = "data.jsonl") -> Path:
        path = tmp_path / name
        lines = [row if isinstance(row, str) else json.dumps(row) for row in rows]
        path.write_text("".join(line + "\n" for line in lines), encoding="utf-8")
        return path

    return to_file


@pytest.fixture
def data(write, rows):
    return write(rows(30))


@pytest.fixture
def small():
    """Flags of a run that takes a second or two."""
    return [
        "--model=scratch:nano",
        "--template=brief",
        "--imitation-epochs=1",
        "--imitation-tokens=512",
        "--tokens-per-batch=512",
        "--learning-rate=1e-3",
        "--use-cpu",
        "--sample-tokens=8",
        "--report=false",
    ]
