"""A study's record into the document, without touching what is written around it."""

from __future__ import annotations

import pytest

from bench.common.markers import between
from bench.study import facts, marks, study_of

DOCUMENT = "before\n<!-- tasks: begin (python -m bench.study) -->\n\nold\n\n<!-- tasks: end -->\nafter\n"


def test_only_what_stands_between_the_markers_is_replaced():
    text = between(DOCUMENT, *marks("tasks"), "new")
    assert text == DOCUMENT.replace("old", "new")
    assert between(text, *marks("tasks"), "new") == text


@pytest.mark.parametrize("document", ["", DOCUMENT * 2, DOCUMENT.replace("begin", "start")])
def test_a_document_without_its_markers_is_refused(document):
    with pytest.raises(ValueError, match="each of these lines once"):
        between(document, *marks("tasks"), "new")


def test_an_unknown_study_is_refused():
    with pytest.raises(ValueError, match="'other' is not known; those are: tasks, summeval"):
        study_of({"study": "other"})


def test_the_facts_name_command_machine_and_cpu_time():
    text = facts(
        {
            "command": "amopo demo --seeds 3",
            "date": "2026-01-01",
            "seeds": [1, 2],
            "parameters": 870_000,
            "machine": {"processor": "a CPU", "torch threads": 2},
            "versions": {"torch": "2.13", "transformers": "5", "amopo": "0.1"},
            "cpu_seconds": {"start": {"1": 60, "2": 60}, "mean": {"1": 30, "2": 30}},
        }
    )
    assert text.startswith("`amopo demo --seeds 3`, 2026-01-01: seeds 1, 2, 0.87M parameters, 3 CPU minutes on a CPU")
