"""Arguments of `amopo data annotate`, and what it leaves."""

from __future__ import annotations

import json
from pathlib import Path

OBJECTIVE = "instruction_following"
# Seconds. Nothing here takes so long; a test that waits for what never comes fails with this.
PATIENCE = 240


def arguments(url):
    return [f"--objective={OBJECTIVE}", "--scale=0:4", f"--endpoint={url}", "--model=judge", f"--timeout={PATIENCE}"]


def read(path):
    return [json.loads(line) for line in Path(path).read_text().splitlines()]


def scores_in(path):
    return {r["text"]: r["scores"].get(OBJECTIVE) for row in read(path) for r in row["responses"]}


def texts(rows):
    return [r["text"] for row in rows for r in row["responses"]]


def one_error(outcome, status=2):
    found, _, err = outcome
    assert found == status and err.startswith("amopo: error: ") and err.count("\n") == 1, outcome
    return err
