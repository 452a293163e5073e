"""What a study's record says of the study that it is of."""

from __future__ import annotations

from dataclasses import replace

from amopo.study import record
from amopo.study.methods import METHODS
from amopo.study.record import fingerprint, make_record, methods_of
from amopo.study.summeval import SummevalStudy
from amopo.study.tasks import TaskStudy

from .conftest import TINY, TINY_RATED


def test_a_new_record_carries_settings_methods_and_their_fingerprint(rated):
    study = SummevalStudy(TINY_RATED, rated)
    one = {"parameters": 1, "data": {}, "train_cpu_seconds": 1, "measure_cpu_seconds": 1}
    made = make_record(study, {1: {"start": one}}, {}, [], command="amopo demo")
    assert made["fingerprint"] == fingerprint(study) and len(made["fingerprint"]) == 32
    assert made["settings"]["steps"] == TINY_RATED.steps and made["settings"]["data"]
    assert made["methods"]["simpo"] == {"objective": "simpo", "weights": "uniform", "plain": True, "swapped": False}


def test_the_fingerprint_changes_with_every_part_and_with_nothing_else(rated, monkeypatch):
    study = SummevalStudy(TINY_RATED, rated)
    first = fingerprint(study)
    assert fingerprint(SummevalStudy(TINY_RATED, rated)) == first
    # what a method is called in tables decides no result
    assert fingerprint(study, [replace(method, title="x") for method in METHODS]) == first
    others = [
        fingerprint(SummevalStudy(replace(TINY_RATED, beta=3.0), rated)),
        fingerprint(study, METHODS[:-1]),
        fingerprint(study, [replace(METHODS[0], weights="mean"), *METHODS[1:]]),
        fingerprint(TaskStudy(TINY)),
    ]
    monkeypatch.setattr(record, "TRAINING", {"lr_scheduler_type": "linear"})
    others.append(fingerprint(study))
    monkeypatch.undo()
    rated.write_text(rated.read_text().replace("Story 1", "Story one"))
    others.append(fingerprint(SummevalStudy(TINY_RATED, rated)))
    assert len({first, *others}) == 7


def test_a_generator_that_writes_other_tasks_has_another_fingerprint(monkeypatch):
    first = fingerprint(TaskStudy(TINY))
    monkeypatch.setattr("amopo.data.verifiable.files.score_response", lambda task, text: {"correctness": 0})
    assert fingerprint(TaskStudy(TINY)) != first


def test_methods_are_told_by_what_they_do():
    assert [set(found) for found in methods_of(METHODS).values()] == [{"objective", "weights", "plain", "swapped"}] * 5
