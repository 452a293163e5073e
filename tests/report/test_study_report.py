"""Tables and pictures of a study say what its record says."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from amopo.report.study_plots import SHORT, STYLES, draw_study
from amopo.report.study_tables import StudyTable, as_markdown, change_cells, interval, number, percent, percent_cells
from amopo.study.methods import TITLES

ROOT = Path(__file__).resolve().parents[2]
RECORDS = sorted((ROOT / "bench" / "results" / "study").glob("*.json"))
ENTRY = {"mean": 0.12345, "over_seeds": [-0.01, 0.3], "over_prompts": [0.1, 0.149]}


def test_columns_are_aligned_and_every_row_is_whole():
    table = StudyTable(
        "Scores", ["", "a", "long name"], [["start", "1.00", "2.00"], ["end of it", "+10.0 %", "–"]], "Note."
    )
    text = as_markdown([table])
    lines = text.splitlines()
    assert lines[0] == "### Scores" and text.endswith("\n\nNote.\n")
    rows = [line for line in lines if line.startswith("|")]
    assert len(rows) == 4 and len({len(row) for row in rows}) == 1
    assert rows[2] == "| start     |    1.00 |      2.00 |" and rows[1] == "|-----------|--------:|----------:|"


def test_a_row_of_another_length_is_refused():
    with pytest.raises(ValueError, match="table 'x': a row has 1 cells, the header 2"):
        as_markdown([StudyTable("x", ["", "a"], [["b"]])])


def test_numbers_have_their_sign_and_what_is_missing_is_a_dash():
    assert change_cells(ENTRY) == ["+0.12", "[-0.01, +0.30]", "[+0.10, +0.15]"]
    assert percent_cells(ENTRY) == ["+12.3 %", "[-1.0, +30.0]", "[+10.0, +14.9]"]
    assert percent_cells(None) == change_cells(None) == ["–"] * 3
    assert percent_cells({**ENTRY, "over_seeds": None})[1] == "–"
    assert change_cells({**ENTRY, "mean": None})[0] == "–"
    assert (number(None), number(float("nan")), percent(float("inf"))) == ("–", "–", "–")
    assert interval([None, 0.1]) == "–"


def record(value: float = 2.0) -> dict:
    """A record of two objectives with made-up numbers."""

    def compared(shift: float) -> dict:
        return {
            method: {
                "value": {
                    "mean": value + shift + 0.1 * place,
                    "over_prompts": [value + shift + 0.1 * place - 0.05, value + shift + 0.1 * place + 0.08],
                }
            }
            for place, method in enumerate(STYLES)
        }

    control = {method: {"matrix": [[2.5, 1.0], [1.75, 3.0]], "plain": [2.0, 2.0]} for method in STYLES}
    names = ("plain", "a_b", "c", "mean")
    return {
        "seeds": [1, 2, 3],
        "summary": {
            "generated": {"drawn": {"plain": {name: compared(0.2 * i) for i, name in enumerate(names)}}},
            "margins": {name: compared(-2.0) for name in names},
            "controllability": control,
        },
    }


def test_the_pictures_name_every_method_and_show_the_matrix(tmp_path):
    pytest.importorskip("matplotlib")
    assert set(SHORT) == set(STYLES) == set(TITLES)
    paths = draw_study(record(), ["a_b", "c"], tmp_path)
    scores, control, margins = (path.read_text() for path in paths)
    assert [path.name for path in paths] == ["scores.svg", "control.svg", "margins.svg"]
    for title in SHORT.values():
        assert title in scores and title in margins and title in control
    assert "3 seeds" in scores
    for difference in ("+0.50", "-1.00", "-0.25", "+1.00"):
        assert control.count(f">{difference}<") == len(STYLES)


def test_the_same_record_gives_the_same_bytes(tmp_path):
    pytest.importorskip("matplotlib")
    one, again, other = (
        [path.read_bytes() for path in draw_study(record(value), ["a_b", "c"], tmp_path / str(folder))]
        for folder, value in enumerate((2.0, 2.0, 2.3))
    )
    assert one == again and one[0] != other[0]


@pytest.mark.parametrize("path", RECORDS, ids=lambda path: path.stem)
def test_the_document_holds_every_table_of_the_committed_record(path):
    from amopo.study.settings import SUMMEVAL, TASKS
    from amopo.study.summeval import SummevalStudy
    from amopo.study.tasks import TaskStudy

    found = json.loads(path.read_text(encoding="utf-8"))
    study = TaskStudy(TASKS) if found["study"] == "tasks" else SummevalStudy(SUMMEVAL, "")
    document = (ROOT / "docs" / "study.md").read_text(encoding="utf-8")
    for table in study.tables(found["summary"]):
        assert as_markdown([table]).strip() in document, table.title
    assert found["command"] in document
    for check in found["checks"]:
        assert check["text"] in document
    # the settings of the study are still those of the code
    settings = {name: value for name, value in found["settings"].items() if name in vars(study.settings)}
    assert settings == vars(study.settings)


@pytest.mark.parametrize("path", RECORDS, ids=lambda path: path.stem)
def test_the_committed_pictures_are_in_the_document(path):
    document = (ROOT / "docs" / "study.md").read_text(encoding="utf-8")
    pictures = [name for name in re.findall(r"\]\((study/[^)]+\.svg)\)", document) if f"/{path.stem}-" in name]
    assert len(pictures) == 3
    assert all((ROOT / "docs" / name).is_file() for name in pictures)
