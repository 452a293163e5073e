"""Several passes over a source give the same rows, or an error that names it."""

from __future__ import annotations

import datetime
import gc
import json
import os
import sys
import tempfile
import types

import pytest

from amopo.data import DataError
from amopo.data.sources.steady import SpooledRows, open_steady
from amopo.data.split_file import split_file


@pytest.fixture
def path(write_jsonl, grouped_row):
    return write_jsonl(*(grouped_row({"helpfulness": 3}, {"helpfulness": 1}, prompt=f"q{n}") for n in range(20)))


def replaced(path):
    """Another file of that name, of the same size."""
    other = path.with_suffix(".other")
    other.write_text(path.read_text().replace("q3", "Q3"))
    os.replace(other, path)


def lengthened(path):
    with open(path, "a") as file:
        file.write('{"prompt": "half a row')


def edited(path):
    before = path.stat()
    path.write_text(path.read_text().replace("q3", "Q3"))
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns + 1))


CHANGES = [replaced, lengthened, edited, os.remove]


@pytest.mark.parametrize("change", CHANGES)
def test_a_file_that_changed_between_passes_is_named(path, change):
    source = open_steady(path)
    assert len(list(source.rows())) == 20
    change(path)
    with pytest.raises(DataError, match=rf"{path}: the file changed while it was in use"):
        next(source.rows())


@pytest.mark.parametrize("change", [lengthened, edited])
def test_a_file_that_changes_during_a_pass_is_named(path, change):
    rows = open_steady(path).rows()
    assert next(rows)[0] == 1
    change(path)
    with pytest.raises(DataError, match="the file changed while it was in use"):
        list(rows)


def test_a_file_that_stays_gives_the_same_rows_and_its_own_errors(path, write_jsonl):
    source = open_steady(path)
    assert list(source.rows()) == list(source.rows())
    broken = write_jsonl('{"prompt": "half a row')
    with pytest.raises(DataError, match="line 1: broken JSON"):
        list(open_steady(broken).rows())


def test_a_split_of_a_file_that_changes_writes_no_half(path, tmp_path):
    targets = tmp_path / "train.jsonl", tmp_path / "eval.jsonl"
    calls = []

    def change_after_the_first_pass(rows):
        calls.append(rows)
        if len(calls) == 1:
            lengthened(path)

    with pytest.raises(DataError, match="the file changed while it was in use"):
        split_file(path, *targets, eval_fraction=0.2, seed=0, on_rows=change_after_the_first_pass)
    assert calls and not any(target.exists() for target in targets)


@pytest.fixture
def hub(monkeypatch, tmp_path):
    """A data set that counts how often it is streamed; temporary files stand in an empty folder."""
    rows = [{"n": n, "text": "Köln \ud800", "score": float("inf"), "gap": None} for n in range(5)]
    passes = []

    def load_dataset(path, name=None, streaming=False):
        class Split:
            def __iter__(self):
                passes.append(1)
                return iter(rows)

        return {"train": Split()}

    module = types.ModuleType("datasets")
    module.load_dataset, module.get_dataset_config_names = load_dataset, lambda path: []
    monkeypatch.setitem(sys.modules, "datasets", module)
    folder = tmp_path / "temporary"
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    return types.SimpleNamespace(rows=rows, passes=passes, folder=folder)


def test_a_data_set_is_streamed_once_and_its_copy_goes_with_it(hub):
    source = open_steady("hf:me/one")
    assert isinstance(source, SpooledRows) and (source.name, source.unit) == ("hf:me/one", "row")
    first = list(source.rows())
    assert [row["n"] for _, row in first] == list(range(5)) and "gap" not in first[0][1]
    assert list(source.rows()) == first == list(source.rows())
    assert len(hub.passes) == 1 and len(list(hub.folder.iterdir())) == 1
    del source
    gc.collect()
    assert not list(hub.folder.iterdir())


def test_a_pass_that_ends_early_keeps_nothing(hub):
    source = open_steady("hf:me/one")
    rows = source.rows()
    next(rows)
    rows.close()
    assert not list(hub.folder.iterdir())
    assert len(list(source.rows())) == 5 and len(hub.passes) == 2


def test_a_pass_within_a_pass_reads_all_rows(hub):
    """As readers do that look for an earlier row."""
    source = open_steady("hf:me/one")
    outer = source.rows()
    next(outer)
    assert len(list(source.rows())) == 5
    assert [row["n"] for _, row in outer] == [1, 2, 3, 4]
    assert len(list(hub.folder.iterdir())) == 1


def test_what_json_does_not_know_is_kept_as_text(hub):
    hub.rows[0]["when"] = datetime.date(2024, 5, 17)
    source = open_steady("hf:me/one")
    list(source.rows())
    assert next(source.rows())[1]["when"] == "2024-05-17"
    assert json.dumps(next(source.rows())[1])


def test_no_room_for_the_copy_names_the_remedy(hub, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(hub.folder / "gone"))
    with pytest.raises(DataError, match="hf:me/one: its rows cannot be kept in .*gone.*set TMPDIR"):
        list(open_steady("hf:me/one").rows())
