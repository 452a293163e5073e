"""Every JSON example of docs/data.md is read as the page says."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from amopo.data import iter_records, scan_scores
from amopo.data.readers import FORMS

PAGE = Path(__file__).resolve().parents[2] / "docs" / "data.md"
# heading, then the block
BLOCKS = re.findall(r"^```json\n(.*?)^```$", PAGE.read_text(encoding="utf-8"), flags=re.DOTALL | re.MULTILINE)


def write(block: str, path: Path) -> Path:
    """A block is one JSON value over several lines, or JSON lines."""
    try:
        value = json.loads(block)
    except json.JSONDecodeError:
        path.write_text(block, encoding="utf-8")
    else:
        path.write_text(json.dumps(value), encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def scans(tmp_path_factory):
    folder = tmp_path_factory.mktemp("docs")
    return [(path := write(block, folder / f"{n}.json"), scan_scores(path)) for n, block in enumerate(BLOCKS)]


def test_every_form_is_shown(scans):
    assert {scan.form for _, scan in scans} == set(FORMS)


@pytest.mark.parametrize("number", range(len(BLOCKS)))
def test_an_example_is_read_with_all_its_scores(scans, number):
    path, scan = scans[number]
    records = list(iter_records(path, objectives=scan.objectives))
    assert records and len(scan.objectives) >= 2
    for record in records:
        assert len(record.responses) >= 2 and all(r.text.strip() for r in record.responses)
        assert "extra_id" not in json.dumps(record.prompt)


def test_the_turns_of_the_page_are_told_apart(scans):
    roles = {tuple(m["role"] for m in r.prompt) for p, s in scans for r in iter_records(p, objectives=s.objectives)}
    assert ("user", "assistant", "user") in roles
