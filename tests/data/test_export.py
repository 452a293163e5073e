"""Records written as rows read as the same records; files are written whole or not at all."""

from __future__ import annotations

import datetime
import gzip
import json

import pytest

from amopo.data import DataError, Scale, read_records
from amopo.data.export import grouped_row, trl_rows
from amopo.data.output import HalfCharacters, check_target, half_character, write_rows

HIGH, LOW = {"helpfulness": 3, "wit": 9}, {"helpfulness": 1, "wit": 2}
SCALES = {"wit": [0, 10]}
TURNS = [
    {"role": "system", "content": "Be kind."},
    {"role": "user", "content": "Hi"},
    {"role": "assistant", "content": "Hello"},
    {"role": "user", "content": "Is snow cold?"},
]


def read(path, **options):
    return read_records(path, objectives=["helpfulness", "wit"], **options)


@pytest.fixture
def records(write_jsonl, grouped_row):
    path = write_jsonl(
        grouped_row(HIGH, LOW, id="a", topic={"deep": [1]}, scales=SCALES, texts=["Straße", "no"]),
        grouped_row(LOW, HIGH, {"helpfulness": 2, "wit": 2.5}, prompt=TURNS, scales=SCALES),
        grouped_row(HIGH, HIGH, id=7, scales=SCALES),
    )
    return read(path)


def content(records):
    return [(r.id, r.prompt, r.responses, r.scales, r.extra) for r in records]


def test_grouped_rows_read_as_the_same_records(records, tmp_path):
    path = tmp_path / "out.jsonl"
    with write_rows(path) as write:
        for record in records:
            write(grouped_row(record))
    assert content(read(path)) == content(records)
    assert records[1].scales == {"helpfulness": Scale(0, 4), "wit": Scale(0, 10)}


def test_trl_rows_hold_the_pairs_with_the_better_response_chosen(records, tmp_path):
    path = tmp_path / "out.jsonl"
    rows = [row for record in records for row in trl_rows(record, strategy="all")]
    with write_rows(path) as write:
        for row in rows:
            write(row)
    # the third record ties
    assert len(rows) == 1 + 3
    back = read(path)
    assert [len(record.responses) for record in back] == [2] * 4
    assert back[0].responses == records[0].responses and back[0].extra == records[0].extra
    for record, original in zip(back, [records[0]] + [records[1]] * 3, strict=True):
        assert record.prompt == original.prompt and record.scales == original.scales
        assert set(map(str, record.responses)) <= set(map(str, original.responses))
        better, worse = (
            sum(s / (4 if n == "helpfulness" else 10) for n, s in r.scores.items()) for r in record.responses
        )
        assert better > worse
    assert trl_rows(records[2]) == []
    assert [row["chosen"][0]["content"] for row in trl_rows(records[1])] == ["answer 1"]


def test_trl_rows_are_lists_of_messages(records):
    (row,) = trl_rows(records[0])
    assert row["prompt"] == [{"role": "user", "content": "What is snow?"}]
    assert row["chosen"] == [{"role": "assistant", "content": "Straße"}]
    assert row["chosen_scores"] == HIGH and row["rejected_scores"] == LOW


def test_a_field_that_would_be_overwritten_is_named(write_jsonl, grouped_row):
    path = write_jsonl(grouped_row(HIGH, LOW, scales=SCALES, chosen="x"))
    (record,) = read(path, format="grouped")
    with pytest.raises(DataError, match="its field 'chosen' would overwrite"):
        trl_rows(record)


# Files


def test_a_compressed_target_holds_the_same_and_is_the_same_bytes_each_time(tmp_path):
    for name in ("a.jsonl.gz", "b.jsonl.gz"):
        with write_rows(tmp_path / name) as write:
            write({"a": "Köln"})
    assert json.loads(gzip.decompress((tmp_path / "a.jsonl.gz").read_bytes())) == {"a": "Köln"}
    assert (tmp_path / "a.jsonl.gz").read_bytes() == (tmp_path / "b.jsonl.gz").read_bytes()


def test_an_error_leaves_what_was_there(tmp_path):
    path = tmp_path / "out.jsonl"
    path.write_text("before")
    with pytest.raises(RuntimeError), write_rows(path) as write:
        write({"a": 1})
        raise RuntimeError
    assert path.read_text() == "before" and [p.name for p in tmp_path.iterdir()] == ["out.jsonl"]


def test_dates_are_written_as_text_and_what_json_cannot_hold_is_named(tmp_path):
    with write_rows(tmp_path / "out.jsonl") as write:
        write({"day": datetime.date(2026, 1, 2), "time": datetime.datetime(2026, 1, 2, 3)})
    assert json.loads((tmp_path / "out.jsonl").read_text()) == {"day": "2026-01-02", "time": "2026-01-02T03:00:00"}
    with pytest.raises(DataError, match="of type bytes, which JSON cannot hold"), write_rows(tmp_path / "x") as write:
        write({"a": b"x"})


def test_targets_are_checked_before_any_work(tmp_path):
    path = tmp_path / "data.jsonl"
    assert check_target(path, force=False) == path
    path.write_text("x")
    with pytest.raises(DataError, match="data.jsonl: the file exists; name another one, or replace it with --force"):
        check_target(path, force=False)
    assert check_target(path, force=True) == path
    with pytest.raises(DataError, match="this is the file that is read"):
        check_target(tmp_path / "." / "data.jsonl", force=True, source=path)
    with pytest.raises(DataError, match="the folder does not exist"):
        check_target(tmp_path / "none" / "data.jsonl", force=False)
    with pytest.raises(DataError, match="this is a folder"):
        check_target(tmp_path, force=True)


@pytest.mark.parametrize("name", ["out.jsonl", "out.jsonl.gz"])
def test_half_a_character_is_written_as_the_escape_that_it_is_and_the_field_named(tmp_path, name):
    path, row = tmp_path / name, {"a": "Köln", "note": {"tags": ["fine", {"deep": "x\ud83d"}]}}
    with write_rows(path) as write:
        assert [write({"a": "Köln"}), write(row), write({"a": "\U0001f600"})] == [None, "'note.tags[1].deep'", None]
    raw = path.read_bytes()
    text = (gzip.decompress(raw) if name.endswith("gz") else raw).decode()
    assert [json.loads(line) for line in text.splitlines()] == [{"a": "Köln"}, row, {"a": "\U0001f600"}]
    assert text.splitlines()[0] == '{"a": "Köln"}'


@pytest.mark.parametrize(
    ("row", "name"),
    [({"a": "b"}, None), ({"a": ["\ud800"]}, "'a[0]'"), ({"b\ud800": 1}, "'b\\ud800'"), ({"a": {"c\udfff": 1}}, None)],
)
def test_half_a_character_is_found_in_values_and_names(row, name):
    found = half_character(row)
    assert found == name if name else found is None or "udfff" in found


def test_what_is_said_of_half_characters_names_the_first_few():
    halves = HalfCharacters()
    assert halves.lines() == []
    for number in range(5):
        halves.add(f"data.jsonl, line {number}", "'note'" if number else None)
    (line,) = halves.lines()
    assert "line 1: its field 'note'; data.jsonl, line 2" in line and "and 1 rows more" in line and "line 4" not in line
