"""Files that no tool of ours wrote: read right, or refused with the place and the remedy."""

from __future__ import annotations

import gzip
import json

import pytest

from amopo.data import DataError, read_records, scan_scores
from amopo.data.inspection import inspect_file
from amopo.data.readers import all_objectives
from amopo.data.split_file import split_file


def row(number, **fields):
    responses = [{"text": f"good {number}", "scores": {"a": 4}}, {"text": f"poor {number}", "scores": {"a": 1}}]
    return {"prompt": f"question {number}", "responses": responses, "scales": {"a": [0, 4]}} | fields


def lines(count=6):
    return [json.dumps(row(number), ensure_ascii=False) for number in range(count)]


def prompts(path):
    return [record.prompt[0]["content"] for record in read_records(path, objectives=["a"])]


EXPECTED = [f"question {number}" for number in range(6)]


@pytest.mark.parametrize(
    "content",
    [
        "\r\n".join(lines()).encode() + b"\r\n",
        ("\ufeff" + "\n".join(lines())).encode(),
        ("\ufeff" + "\n".join(lines()[:3]) + "\n\ufeff" + "\n".join(lines()[3:])).encode(),
        gzip.compress("\n".join(lines()).encode()),
        gzip.compress("\n".join(lines()[:3]).encode() + b"\n") + gzip.compress("\n".join(lines()[3:]).encode()),
        ("[" + ",\r\n".join(lines()) + "]").encode(),
        b"\n \n" + "\n\n".join(lines()).encode(),
    ],
    ids=["crlf", "mark", "two marked files in one", "gzip", "two gzips in one", "array", "blank lines"],
)
def test_the_rows_are_the_same_however_the_lines_are_made(tmp_path, content):
    path = tmp_path / "data.jsonl"
    path.write_bytes(content)
    assert prompts(path) == EXPECTED


def test_line_separators_of_unicode_end_no_line(tmp_path):
    text = "one\u2028two\u2029three\x85four\x0bfive"
    path = tmp_path / "data.jsonl"
    path.write_text(json.dumps(row(0, prompt=text), ensure_ascii=False) + "\n" + lines()[1] + "\n", encoding="utf-8")
    assert prompts(path) == [text, "question 1"]
    split_file(path, tmp_path / "train", tmp_path / "eval", eval_fraction=0.5, seed=0)
    parts = [(tmp_path / name).read_bytes().split(b"\n")[:-1] for name in ("train", "eval")]
    assert sorted(json.loads(line)["prompt"] for part in parts for line in part) == sorted([text, "question 1"])


def test_a_huge_field_and_a_huge_text_are_read(tmp_path):
    path = tmp_path / "data.jsonl"
    long = row(1, note="x" * 20_000_000)
    long["responses"][0]["text"] = "word " * 200_000
    path.write_text("\n".join([*lines(1), json.dumps(long)]))
    assert len(read_records(path, objectives=["a"])[1].responses[0].text) == 1_000_000


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (
            b"prompt,chosen,rejected\na,b,c\n",
            ["line 1: broken JSON", "neither JSON lines nor a JSON array nor parquet"],
        ),
        ("\r".join(lines()).encode(), ["line 1: broken JSON", "after an object the line must end"]),
        ("\n".join(lines()).encode("utf-16"), ["line 1: the line is not UTF-8", "save the file as UTF-8"]),
        (json.dumps({"rows": []}, indent=1).encode(), ["line 1: broken JSON", "an object must stand on one line"]),
        (b"42\n", ["line 1: each line must hold one JSON object"]),
    ],
    ids=["csv", "carriage returns", "utf-16", "one object", "a number"],
)
def test_a_file_of_which_no_row_can_be_read_says_why_in_every_command(tmp_path, content, words):
    path = tmp_path / "data.jsonl"
    path.write_bytes(content)
    for read in (
        lambda: read_records(path, objectives=["a"]),
        lambda: inspect_file(path),
        lambda: split_file(path, tmp_path / "train", tmp_path / "eval", eval_fraction=0.5, seed=0),
    ):
        with pytest.raises(DataError) as error:
            read()
        assert all(word in str(error.value) for word in [str(path), *words]), str(error.value)


def test_a_number_of_thousands_of_digits_does_not_fill_the_message(tmp_path):
    path = tmp_path / "data.jsonl"
    path.write_text(lines()[0].replace("4}", "1" + "0" * 400 + "}", 1))
    with pytest.raises(DataError, match="objective 'a' is 10000.* a finite number is needed") as error:
        read_records(path, objectives=["a"])
    assert len(str(error.value)) - len(str(path)) < 200


@pytest.mark.parametrize(("name", "why"), [("", "is empty"), (" ", "is empty"), ("a\ud83d", "holds half a character")])
def test_a_score_whose_name_nobody_can_ask_for_is_refused_where_all_are_read(tmp_path, name, why):
    path = tmp_path / "data.jsonl"
    responses = [{"text": text, "scores": {name: score}} for text, score in (("x", 1), ("y", 2))]
    path.write_text("\n".join(json.dumps({"prompt": str(n), "responses": responses}) for n in range(3)))
    with pytest.raises(DataError, match=f"data.jsonl: the name of a score {why}.*--objectives") as error:
        inspect_file(path)
    str(error.value).encode()


def test_scores_that_are_text_are_told_apart_from_no_scores(tmp_path):
    path = tmp_path / "data.jsonl"
    path.write_text(lines()[0].replace('{"a": 4}', '{"a": "4"}').replace('{"a": 1}', '{"a": "1"}'))
    with pytest.raises(DataError, match="no field of the responses holds numbers; 'a' holds other values.*not text"):
        all_objectives(scan_scores(path), str(path))


def test_an_objective_that_is_mostly_nan_is_no_other_field(tmp_path):
    path = tmp_path / "data.jsonl"
    path.write_text("\n".join(line.replace('{"a": 4}', '{"a": NaN, "b": 1}') for line in lines()))
    scan = scan_scores(path)
    assert scan.objectives == ("a", "b") and scan.ranges["a"].not_finite == 6 and scan.other_fields == ()
    with pytest.raises(DataError, match="line 1: the score of response 1 for objective 'a' is nan"):
        read_records(path, objectives=scan.objectives, scales={"b": [0, 4]})


def test_rows_that_are_all_bad_say_why_where_they_would_be_counted(tmp_path):
    path = tmp_path / "data.jsonl"
    path.write_text("\n".join(json.dumps({"prompt": "p", "chosen": "x", "rejected": f"y {n}"}) for n in range(3)))
    with pytest.raises(
        DataError, match='no field .* holds numbers; the first error: .*line 1: the row has no "chosen_'
    ):
        inspect_file(path)
