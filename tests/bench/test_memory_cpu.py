"""The committed measurements on CPUs: of today's plans, in the document, within what is promised."""

from __future__ import annotations

import copy

import pytest

from amopo.packing.attention_backends import runs_compiled_on_cpu
from bench import memory_cpu
from bench.common.results import load
from bench.memory_cpu import DOCUMENT, PHASES, RESULT, check, document_with, tables

ALLOWED = 0.10
SMALL = 64 << 10  # positions and row indices, which are all that stands where everything is offloaded
BLOCK = 8 << 20  # the head's plan holds fp32 copies of a block of logits on a CPU in bf16, which C++ goes without


@pytest.fixture(scope="module")
def result():
    return load(RESULT)


@pytest.mark.skipif(not runs_compiled_on_cpu(), reason="plans of a CPU with the C++ attention, which is not there")
def test_plans_and_document_are_those_of_today():
    assert check(RESULT, DOCUMENT) == [], "run python -m bench.memory_cpu --replan"


def test_every_phase_that_was_measured_is_within_what_is_promised(result):
    for record in result["records"]:
        measured, planned = record["stats"]["measured"], record["stats"]["planned"]
        for phase in PHASES:
            room = BLOCK if phase == "head" and "run" in record["key"] else 0
            assert measured[phase] * (1 - ALLOWED) <= planned[phase] + SMALL, (phase, record["key"])
            assert planned[phase] <= measured[phase] * (1 + ALLOWED) + room, (phase, record["key"])


def test_every_row_of_the_document_was_measured(result):
    made = tables(result)
    rows = {
        "94M": len(PHASES),
        "sharing": len(memory_cpu.SHARING),
        **{name: len(rows) for name, rows in memory_cpu.RANKS.items()},
    }
    assert {name: text.count("\n") - 1 for name, text in made.items()} == rows


def test_a_figure_that_was_not_measured_is_noticed(result):
    text = DOCUMENT.read_text(encoding="utf-8")
    assert document_with(text, tables(result)) == text
    for place in range(len(result["records"])):
        other = copy.deepcopy(result)
        measured = other["records"][place]["stats"]["measured"]
        measured.update({phase: 2 * size for phase, size in measured.items()})
        assert document_with(text, tables(other)) != text, other["records"][place]["key"]


def test_a_document_without_its_markers_is_named(result):
    with pytest.raises(ValueError, match="memory.md must hold each of these lines once"):
        document_with("no markers", tables(result))
