"""Large files are read in memory that does not grow with them."""

from __future__ import annotations

import gzip
import json
import tracemalloc

import pytest

from amopo.data import DataError, iter_records, read_records
from amopo.data.inspection import inspect_file
from amopo.data.readers import scan_scores
from amopo.data.seen import SeenNames
from amopo.data.sources import json_array
from amopo.data.split_file import split_file

FEW, MANY = 300, 4500
# What a file that is 15 times as long may take more: allocations of the interpreter, not rows.
SLACK = 40_000


def grouped(number):
    responses = [{"text": f"answer {number} " + "x" * 200, "scores": {"helpfulness": number % 5}} for _ in range(2)]
    return [{"prompt": f"question {number % 50}", "responses": responses, "scales": {"helpfulness": [0, 4]}}]


def helpsteer2(number):
    return [{"prompt": f"question {number}", "response": "x" * 200, "helpfulness": score} for score in (1, 2)]


def trl(number):
    scores = {f"{side}_scores": {"helpfulness": score} for side, score in (("chosen", 3), ("rejected", 1))}
    scores["scales"] = {"helpfulness": [0, 4]}
    return [{"prompt": f"question {number}", "chosen": "x" * 200, "rejected": "y" * 200, **scores}]


@pytest.fixture
def make_file(tmp_path):
    def make(kind, count, row=grouped):
        rows = [item for number in range(count) for item in row(number)]
        path = tmp_path / f"{kind}-{row.__name__}-{count}"
        lines = "".join(json.dumps(item) + "\n" for item in rows)
        if kind == "lines":
            path.write_text(lines)
        elif kind == "gzip":
            path.write_bytes(gzip.compress(lines.encode(), compresslevel=1))
        elif kind == "array":
            path.write_text(json.dumps(rows))
        else:
            pa = pytest.importorskip("pyarrow", reason="reading parquet needs pyarrow: amopo[data]")
            import pyarrow.parquet as pq

            pq.write_table(pa.Table.from_pylist(rows), path, row_group_size=500)
        return path

    return make


def peak(read):
    """Most bytes that Python held at once while reading, after a first time that fills caches."""
    read()
    tracemalloc.start()
    try:
        read()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def count(path):
    return sum(1 for _ in iter_records(path, objectives=["helpfulness"]))


@pytest.mark.parametrize(
    ("kind", "row"),
    [
        ("lines", grouped),
        ("lines", helpsteer2),
        ("lines", trl),
        ("gzip", grouped),
        ("array", grouped),
        ("parquet", grouped),
    ],
)
def test_reading_many_rows_takes_no_more_than_reading_few(make_file, monkeypatch, kind, row):
    monkeypatch.setattr(json_array, "CHUNK", 1 << 16)
    few, many = make_file(kind, FEW, row), make_file(kind, MANY, row)
    assert (count(few), count(many)) == (FEW, MANY)
    assert peak(lambda: count(many)) < peak(lambda: count(few)) + SLACK


def test_the_measurement_would_see_rows_that_are_kept(make_file):
    few, many = make_file("lines", FEW), make_file("lines", MANY)

    def keep(path):
        return read_records(path, objectives=["helpfulness"])

    assert peak(lambda: keep(many)) > 5 * peak(lambda: keep(few))


def test_ids_take_a_few_bytes_each(make_file):
    def with_id(number):
        return [{**grouped(number)[0], "id": f"a rather long name of a record, number {number}"}]

    few, many = make_file("lines", FEW, with_id), make_file("lines", MANY, with_id)
    # the table, twice while it grows
    assert peak(lambda: count(many)) < peak(lambda: count(few)) + SLACK + 40 * MANY


def test_scanning_and_inspecting_keep_no_rows(make_file):
    few, many = make_file("lines", FEW), make_file("lines", MANY)
    assert peak(lambda: scan_scores(many)) < peak(lambda: scan_scores(few)) + SLACK
    assert peak(lambda: inspect_file(many, sample=20)) < peak(lambda: inspect_file(few, sample=20)) + SLACK


def test_splitting_keeps_the_rank_of_each_prompt_and_no_rows(make_file, tmp_path):
    few, many = make_file("lines", FEW), make_file("lines", MANY)

    def split(path):
        split_file(path, tmp_path / "train", tmp_path / "eval", eval_fraction=0.1, seed=0)

    assert peak(lambda: split(many)) < peak(lambda: split(few)) + SLACK + 24 * MANY


def test_records_come_before_the_file_is_read_to_its_end(write_jsonl, grouped_row):
    good = grouped_row({"helpfulness": 1}, {"helpfulness": 2})
    records = iter_records(write_jsonl(good, '{"broken'), objectives=["helpfulness"])
    assert next(records).id == "line-1"
    with pytest.raises(DataError, match="line 2: broken JSON"):
        next(records)


def test_arguments_and_the_file_are_checked_at_the_call(tmp_path):
    with pytest.raises(DataError, match="does not exist"):
        iter_records(tmp_path / "none", objectives=["a"])
    with pytest.raises(DataError, match="K = 0"):
        iter_records(tmp_path / "none", objectives=[])
    with pytest.raises(ValueError, match="unknown format"):
        iter_records(tmp_path / "none", objectives=["a"], format="csv")


def test_rows_are_counted_as_they_are_read(write_jsonl, grouped_row):
    path = write_jsonl(*[grouped_row({"helpfulness": 1}, {"helpfulness": 2})] * 250)
    told = []
    assert len(read_records(path, objectives=["helpfulness"], on_rows=told.append)) == 250
    assert told == [100, 200, 250]


# Ids


def rows_with_ids(grouped_row, *ids):
    scores = ({"helpfulness": 1}, {"helpfulness": 2})
    return [grouped_row(*scores, **({} if name is None else {"id": name})) for name in ids]


@pytest.mark.parametrize(
    ("ids", "message"),
    [
        ((None, "line-1"), "line 2: the id 'line-1' stands on line 1 already"),
        (("line-2", None), "line 2: the id 'line-2' stands on line 1 already"),
        ((None, None, "x", None, "line-2"), "line 5: the id 'line-2' stands on line 2 already"),
        (("x", None, "line-2"), "line 3: the id 'line-2' stands on line 2 already"),
        (("a", "b", "c", "b"), "line 4: the id 'b' stands on line 2 already"),
    ],
)
def test_a_given_id_may_not_be_that_of_a_row_without_one(write_jsonl, grouped_row, ids, message):
    with pytest.raises(DataError, match=message):
        read_records(write_jsonl(*rows_with_ids(grouped_row, *ids)), objectives=["helpfulness"])


def test_ids_whose_hashes_are_equal_are_no_mistake(write_jsonl, grouped_row, monkeypatch):
    monkeypatch.setattr("amopo.data.seen.sample_id_to_int64", lambda name: 7)
    path = write_jsonl(*rows_with_ids(grouped_row, "a", "b", "c"))
    assert [record.id for record in read_records(path, objectives=["helpfulness"])] == ["a", "b", "c"]


def test_names_are_remembered_through_every_growth_of_the_table():
    names = SeenNames()
    assert not any(names.add(f"name {number}") for number in range(5000))
    assert all(names.add(f"name {number}") for number in range(5000)) and len(names) == 5000
    assert not names.add("another") and not names.add_hash(0) and names.add_hash(0)
