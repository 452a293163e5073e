"""The committed agreement of plan and simulation: of today's formulas, in the document, within what is promised."""

from __future__ import annotations

import copy

import pytest

from amopo.memory import layer_backward
from bench import memory_agreement
from bench.common.results import load
from bench.memory_agreement import DOCUMENT, RESULT, check, difference_of, document_with, replanned, tables

PROMISED = 0.05
REACHED = 0.005  # of peaks; nothing here runs, so that nothing makes it wider


@pytest.fixture(scope="module")
def result():
    return load(RESULT)


def test_plans_and_document_are_those_of_today():
    assert check(RESULT, DOCUMENT) == []


@pytest.mark.parametrize("engine", memory_agreement.ENGINES)
def test_every_engine_agrees_on_at_least_twelve_shapes(result, engine):
    of_engine = [record for record in result["records"] if record["key"]["engine"] == engine]
    assert len({record["key"]["model"] for record in of_engine}) >= 12
    for record in of_engine:
        assert abs(difference_of(record)) < REACHED, record["key"]
        stats = record["stats"]
        for phase, simulated in stats["simulated"].items():
            assert stats["planned"][phase] == pytest.approx(simulated, rel=PROMISED), (phase, record["key"])


def test_every_case_was_simulated(result):
    keys = [record["key"] for record in result["records"]]
    for case in memory_agreement.CASES:
        for engine in memory_agreement.ENGINES:
            assert memory_agreement.key_of(case, engine) in keys


def test_all_layers_of_32b_were_simulated(result):
    whole = [r["key"] for r in result["records"] if not r["key"]["layers"] and r["key"]["model"] == "Qwen2.5-32B"]
    assert {(key["engine"], key["ranks"]) for key in whole} >= {("single", 1), ("ddp", 32), ("fsdp2", 32)}


def test_a_changed_formula_is_noticed(result, monkeypatch):
    monkeypatch.setattr(layer_backward, "NORM", layer_backward.NORM + 4)
    assert replanned(result) != result
    assert check(RESULT, DOCUMENT)[0].startswith("memory_agreement.json holds other plans")


def test_a_changed_result_is_noticed_in_the_document(result):
    other = copy.deepcopy(result)
    other["records"][0]["stats"]["simulated"]["head"] *= 2
    text = DOCUMENT.read_text(encoding="utf-8")
    assert document_with(text, tables(result)) == text != document_with(text, tables(other))


def test_a_document_without_its_markers_is_named():
    with pytest.raises(ValueError, match="memory.md must hold each of these lines once"):
        document_with("no markers", "text")
