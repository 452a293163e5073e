"""Where rows come from: arrays, parquet, compressed files, data sets by name."""

from __future__ import annotations

import gzip
import json
import sys
import types

import pytest

from amopo.data import DataError, read_records
from amopo.data.sources import json_array, open_source

GOOD, POOR = {"helpfulness": 3}, {"helpfulness": 1}


@pytest.fixture
def rows(grouped_row):
    return [grouped_row(GOOD, POOR, prompt=f"What is {n}? Köln", id=f"q{n}") for n in range(5)]


def read(name):
    return read_records(name, objectives=["helpfulness"])


def plain(records):
    return [(record.id, record.prompt, record.responses) for record in records]


def refused(name, *parts):
    with pytest.raises(DataError) as error:
        read(name)
    for part in parts:
        assert part in str(error.value), str(error.value)


# Text


@pytest.mark.parametrize("indent", [None, 2])
@pytest.mark.parametrize("begin", ["", "\ufeff", " \n\t"])
def test_an_array_reads_as_lines_do(write_json, write_jsonl, rows, indent, begin):
    text = begin + json.dumps(rows, indent=indent, ensure_ascii=False) + "\n"
    assert plain(read(write_json(text))) == plain(read(write_jsonl(*rows)))


@pytest.mark.parametrize("chunk", [1, 7, 64, 1 << 20])
def test_elements_may_end_anywhere_in_the_window(write_json, rows, chunk, monkeypatch):
    monkeypatch.setattr(json_array, "CHUNK", chunk)
    source = open_source(write_json(json.dumps(rows, indent=1)))
    assert list(source.rows()) == list(enumerate(rows, start=1))
    assert list(source.rows()) == list(enumerate(rows, start=1))  # once more from the beginning


@pytest.mark.parametrize("name", ["data.json.gz", "data"])
def test_the_content_decides_whether_a_file_is_compressed(tmp_path, rows, name):
    path = tmp_path / name
    path.write_bytes(gzip.compress(json.dumps(rows).encode()))
    assert [record.id for record in read(path)] == ["q0", "q1", "q2", "q3", "q4"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[]", "the file is empty: its JSON array has no elements"),
        ('[{"a": 1}, ]', "row 2: broken JSON"),
        ('[{"a": 1} {"a": 2}]', "row 1: broken JSON: after this row stands '{' instead of a comma"),
        ('[{"a": 1}', "row 1: the JSON array ends after this row without a ]"),
        ('[{"a": 1}, {"a": ', "row 2: broken JSON"),
        ('[{"a": 1}] x', "row 1: there is text after the end of the JSON array"),
        ('[{"a": ' * 100_000, "row 1: the JSON cannot be read"),
        ('[{"a": ' + "9" * 5000 + "}]", "row 1: the JSON cannot be read"),
        ("[[1, 2]]", "row 1: each element must be a JSON object, but this is an array"),
        ("[12]", "row 1: each element must be a JSON object, but this is a number"),
        ('["a"]', "but this is text"),
    ],
)
def test_a_broken_array_is_named_by_its_row(write_json, text, message):
    source = open_source(write_json(text))
    with pytest.raises(DataError, match="data.json") as error:
        list(source.rows())
    assert message in str(error.value)


@pytest.mark.parametrize("chunk", [1, 2, 3, 1 << 20])
def test_what_is_no_object_is_skipped_as_a_whole(write_json, rows, chunk, monkeypatch):
    monkeypatch.setattr(json_array, "CHUNK", chunk)
    errors = []
    found = list(open_source(write_json([12345, rows[0], "text", [1, 2], rows[1]])).rows(errors.append))
    assert found == [(2, rows[0]), (5, rows[1])] and [error.line for error in errors] == [1, 3, 4]


def test_an_array_that_is_not_utf8(tmp_path):
    path = tmp_path / "data.json"
    path.write_bytes(b'[{"a": 1}, {"a": "K\xf6ln"}]')
    refused(path, "not UTF-8")


def test_an_element_without_an_end_is_given_up(write_json, rows, monkeypatch):
    monkeypatch.setattr(json_array, "CHUNK", 64)
    monkeypatch.setattr(json_array, "LARGEST", 1 << 12)
    text = json.dumps(rows)[:-2] + ', "x": "' + "y" * (1 << 14)
    with pytest.raises(DataError, match="row 5: broken JSON .no end within 4096 characters"):
        list(open_source(write_json(text)).rows())


# Parquet


@pytest.fixture
def write_parquet(tmp_path):
    pa = pytest.importorskip("pyarrow", reason="reading parquet needs pyarrow: amopo[data]")
    import pyarrow.parquet as pq

    def write(rows, **options):
        path = tmp_path / "data.parquet"
        pq.write_table(pa.Table.from_pylist(rows), path, **options)
        return path

    return write


def test_parquet_reads_as_lines_do(write_parquet, write_jsonl, rows):
    assert plain(read(write_parquet(rows, row_group_size=2))) == plain(read(write_jsonl(*rows)))


def test_the_nulls_that_a_table_fills_in_are_no_scores(write_parquet, grouped_row):
    full = grouped_row({**GOOD, "wit": 2}, {**POOR, "wit": 1}, id="a", scales={"wit": [0, 4]})
    path = write_parquet([full, grouped_row(GOOD, POOR)])
    assert [record.id for record in read(path)] == ["a", "row-2"]
    with pytest.raises(DataError, match="row 2: response 1 has no score for objective 'wit'"):
        read_records(path, objectives=["wit"], scales={"wit": [0, 4]})


def test_scores_in_a_parquet_map_are_read(tmp_path):
    pa = pytest.importorskip("pyarrow")
    import pyarrow.parquet as pq

    scores = pa.array([[("helpfulness", 3.0)], [("helpfulness", 1.0)]], pa.map_(pa.string(), pa.float64()))
    columns = {"prompt": ["x", "y"], "chosen": ["a", "b"], "rejected": ["c", "d"]}
    columns["scales"] = [{"helpfulness": [0, 4]}] * 2
    path = tmp_path / "maps.parquet"
    pq.write_table(pa.table({**columns, "chosen_scores": scores, "rejected_scores": scores}), path)
    assert [dict(record.responses[0].scores) for record in read(path)] == [GOOD, POOR]


def test_a_bad_parquet_row_is_named(write_parquet, grouped_row):
    refused(write_parquet([grouped_row(GOOD, POOR), grouped_row(GOOD, {"helpfulness": 9})]), "data.parquet, row 2: the")


def test_a_damaged_parquet_file_is_named(tmp_path, write_parquet, rows):
    path = write_parquet(rows)
    path.write_bytes(path.read_bytes()[:-20])
    refused(path, "data.parquet: the parquet file cannot be read")


def test_an_empty_parquet_file_is_named(tmp_path):
    pa = pytest.importorskip("pyarrow")
    import pyarrow.parquet as pq

    path = tmp_path / "data.parquet"
    pq.write_table(pa.table({"prompt": pa.array([], pa.string())}), path)
    refused(path, "the file is empty")


def test_parquet_without_pyarrow_names_the_extra(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "pyarrow.parquet", None)
    path = tmp_path / "data.parquet"
    path.write_bytes(b"PAR1....")
    refused(path, "reading parquet needs pyarrow: pip install 'amopo[data]'")


# Data sets by name


class FakeHub:
    """Stands in for the `datasets` library: named data sets of configurations of splits of rows."""

    def __init__(self, contents):
        self.contents, self.calls = contents, []

    def get_dataset_config_names(self, path):
        return list(self.contents[path])

    def load_dataset(self, path, name=None, streaming=False):
        self.calls.append((path, name, streaming))
        if path not in self.contents:
            raise FileNotFoundError(f"Dataset '{path}' doesn't exist on the Hub")
        return self.contents[path][name or "default"]


@pytest.fixture
def hub(monkeypatch, grouped_row):
    def one(*ids):
        return [grouped_row(GOOD, POOR, id=name, extra=None) for name in ids]

    fake = FakeHub(
        {
            "me/one": {"default": {"only": one("a")}},
            "me/two": {"default": {"train": one("t"), "test": one("e")}, "small": {"train": one("s"), "dev": one("d")}},
            "me/none": {"default": {"x": one("x"), "y": one("y")}},
            "me/empty": {"default": {"train": []}},
        }
    )
    module = types.ModuleType("datasets")
    module.load_dataset, module.get_dataset_config_names = fake.load_dataset, fake.get_dataset_config_names
    monkeypatch.setitem(sys.modules, "datasets", module)
    return fake


@pytest.mark.parametrize(
    ("name", "ids"),
    [
        ("hf:me/one", ["a"]),
        ("hf:me/two", ["t"]),
        ("hf:me/two:test", ["e"]),
        ("hf:me/two::test", ["e"]),
        ("hf:me/two:small", ["s"]),
        ("hf:me/two:small:dev", ["d"]),
    ],
)
def test_a_data_set_is_read_by_name_and_streamed(hub, name, ids):
    (record,) = read(name)
    assert [record.id] == ids
    assert record.extra == {}  # a null is no field
    assert hub.calls and all(streaming for _, _, streaming in hub.calls)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("hf:", "this is no name of a data set; write hf:owner/name"),
        ("hf:a:b:c:d", "this is no name of a data set"),
        (
            "hf:me/other",
            "hf:me/other: the data set cannot be read: FileNotFoundError: Dataset 'me/other' doesn't exist",
        ),
        ("hf:me/two:valid", "there is no split 'valid'; splits: train, test"),
        ("hf:me/none", "there is no split 'train'; splits: x, y"),
        ("hf:me/empty", "the split is empty"),
    ],
)
def test_a_name_that_cannot_be_read_is_named(hub, name, message):
    refused(name, message)


def test_an_error_on_the_way_names_the_data_set(hub, grouped_row):
    def rows():
        yield grouped_row(GOOD, POOR)
        raise ConnectionError("the line\nis cut")

    hub.contents["me/one"]["default"]["only"] = rows()
    refused("hf:me/one", "hf:me/one: the data set cannot be read: ConnectionError: the line is cut")


def test_a_bad_row_of_a_data_set_is_named(hub, grouped_row):
    hub.contents["me/one"]["default"]["only"] = [grouped_row(GOOD, POOR), grouped_row(GOOD)]
    refused("hf:me/one", "hf:me/one, row 2: the prompt has 1 response(s)")


def test_a_name_without_the_library_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "datasets", None)
    refused("hf:me/one", "this name needs the datasets library: pip install 'amopo[data]'")


@pytest.fixture
def dataset_folder(tmp_path, rows, monkeypatch):
    pytest.importorskip("datasets", reason="needs the datasets library: amopo[data]")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    folder = tmp_path / "folder"
    folder.mkdir()
    for name, part in (("train", rows[:3]), ("test", rows[3:])):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in part))
    return folder


def test_the_real_library_streams_a_folder(dataset_folder, rows, write_jsonl):
    expected = plain(read(write_jsonl(*rows)))
    assert plain(read(f"hf:{dataset_folder}")) == expected[:3]
    assert plain(read(f"hf:{dataset_folder}:test")) == expected[3:]
    assert plain(read(f"hf:{dataset_folder}:default:test")) == expected[3:]
    refused(f"hf:{dataset_folder}:none", "there is no split 'none'; splits: ")
    refused(f"hf:{dataset_folder / 'missing'}", "the data set cannot be read")


def test_a_folder_named_without_hf_says_so(tmp_path):
    refused(tmp_path, "it is a folder; name a file, or hf:FOLDER")
