"""What is read from a preference file, and the file that is written."""

from __future__ import annotations

import gzip
import json

import pytest

from amopo.data import DataError, Scale, read_records
from amopo.data.annotate import Journal, Source, write_scored

OBJECTIVE = "instruction_following"


def source(path, **options):
    return Source(path, objective=OBJECTIVE, scale=Scale(0, 4), **options)


@pytest.fixture
def scored(tmp_path, make_judge, expected):
    """Writes a file whose responses were all judged, but for those in `without`."""

    def do(path, name="out.jsonl", without=(), existing="refuse", **options):
        judge, found = make_judge(), source(path, existing=existing)
        with Journal(tmp_path / "journal") as journal:
            for entry in found:
                for text in entry.texts:
                    if text not in without:
                        key = judge.question(entry.prompt, text).key
                        journal.answered(key, ask=1, score=expected(text), reason="", tokens=(0, 0))
            written = write_scored(tmp_path / name, found, judge, journal, **options)
        return tmp_path / name, written

    return do


def test_the_same_records_come_out_with_one_score_more(scored, write, rows, expected):
    given = rows(3)
    given[0] |= {"topic": {"a": [1, 2.5]}, "scales": {"helpfulness": [0, 4], "mine": [1, 2]}}
    given[1]["prompt"] = [{"role": "system", "content": "Be kind. ☃"}, {"role": "user", "content": "Hi"}]
    given[1]["responses"][0] |= {"author": "x"}
    given[2]["responses"][1].pop("scores")
    path, written = scored(write(given))
    found = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    for row in given:
        for response in row["responses"]:
            response["scores"] = {**response.get("scores", {}), OBJECTIVE: expected(response["text"])}
        row["scales"] = {**row.get("scales", {}), OBJECTIVE: [0, 4]}
    assert found == given
    assert (written.records, written.missing, written.dropped) == (3, 0, 0)


def test_the_reader_takes_what_was_written(scored, write, rows, expected):
    path, _ = scored(write(rows(4)), name="out.jsonl.gz")
    assert gzip.open(path).readline().startswith(b'{"id": "r0"')
    records = read_records(path, objectives=("helpfulness", OBJECTIVE), scales={"helpfulness": [0, 4]})
    assert [r.scores[OBJECTIVE] for record in records for r in record.responses] == [
        expected(response["text"]) for row in rows(4) for response in row["responses"]
    ]
    assert records[0].scales[OBJECTIVE] == Scale(0, 4)


def test_the_same_answers_give_the_same_bytes(scored, write, rows):
    path = write(rows(4))
    one, two = (scored(path, name=name)[0].read_bytes() for name in ("a.jsonl.gz", "b.jsonl.gz"))
    assert one == two


def test_missing_scores_stay_out_or_take_their_record_along(scored, write, rows):
    path = write(rows(3))
    out, written = scored(path, without={"Prompt 1, answer 1"})
    found = [json.loads(line) for line in out.read_text().splitlines()]
    assert (written.records, written.missing) == (3, 1)
    assert found[1]["responses"][0]["scores"] == {"helpfulness": 3}
    with pytest.raises(DataError, match="line 2.*no score for objective 'instruction_following'"):
        read_records(out, objectives=(OBJECTIVE,))


def test_records_that_lack_a_score_can_be_left_out(scored, write, rows):
    out, written = scored(write(rows(3)), without={"Prompt 1, answer 1"}, drop_missing=True)
    assert (written.records, written.missing, written.dropped) == (2, 1, 1)
    assert [record.id for record in read_records(out, objectives=(OBJECTIVE,))] == ["r0", "r2"]


def test_a_failed_write_leaves_the_old_file_and_nothing_else(scored, write, rows, tmp_path, monkeypatch):
    path = write(rows(3))
    (tmp_path / "out.jsonl").write_text("old")
    from amopo.data.annotate import output

    monkeypatch.setattr(output, "scored_row", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        scored(path)
    assert (tmp_path / "out.jsonl").read_text() == "old"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["data.jsonl", "journal", "out.jsonl"]


def test_half_a_character_in_a_field_that_nobody_reads_is_kept(scored, write, rows):
    (row,) = rows(1)
    row["note"] = "\ud800"
    out, _ = scored(write([row]))
    assert json.loads(out.read_text())["note"] == "\ud800"


# Scores that are there already


@pytest.fixture
def partly(rows, write):
    given = rows(2)
    given[1]["responses"][0]["scores"][OBJECTIVE] = 2.5
    return write(given)


def test_a_score_that_is_there_is_refused_by_line(partly):
    with pytest.raises(DataError, match="line 2: response 1 has a score.*--existing keep.*--existing replace"):
        list(source(partly))


def test_a_score_that_is_there_is_kept(scored, partly, expected):
    assert [entry.wanted for entry in source(partly, existing="keep")] == [(True, True), (False, True)]
    out, written = scored(partly, existing="keep", without={"Prompt 1, answer 1"})
    second = json.loads(out.read_text().splitlines()[1])
    assert [r["scores"][OBJECTIVE] for r in second["responses"]] == [2.5, 3] and written.missing == 0


def test_a_score_that_is_there_is_replaced(scored, partly):
    out, _ = scored(partly, existing="replace")
    second = json.loads(out.read_text().splitlines()[1])
    assert [r["scores"][OBJECTIVE] for r in second["responses"]] == [1, 3]


def test_two_scales_for_one_objective_are_refused(rows, write):
    (row,) = rows(1)
    path = write([{**row, "scales": {OBJECTIVE: [1, 5]}}])
    with pytest.raises(DataError, match="line 1.*1 to 5.*0 to 4.*--scale"):
        list(source(path, existing="keep"))
    assert len(list(source(path, existing="replace"))) == 1


# What is read


def test_other_formats_become_grouped_records(scored, write):
    def row(prompt, response, score):
        return {"prompt": prompt, "response": response, "helpfulness": score, "correctness": 4, "verbosity": 1}

    turns = "Hi\n<extra_id_1>Assistant\nHello\n<extra_id_1>User\nMore"
    path = write([row(turns, "a 1", 3), row(turns, "b 2", 0), row("q", "c 3", 1), row("q", "d 4", 2)])
    out, _ = scored(path)
    records = read_records(out, objectives=("helpfulness", "correctness", "verbosity", OBJECTIVE))
    assert [[r.scores[OBJECTIVE] for r in record.responses] for record in records] == [[1, 2], [3, 4]]
    assert [message["role"] for message in records[0].prompt] == ["user", "assistant", "user"]
    before = read_records(path, objectives=("helpfulness", "verbosity"))
    assert [[dict(r.scores) for r in record.responses] for record in before] == [
        [{k: r.scores[k] for k in ("helpfulness", "verbosity")} for r in record.responses] for record in records
    ]


def test_pairs_become_grouped_records_with_all_their_scores(scored, write):
    trl = {
        "prompt": [{"role": "user", "content": "p"}],
        "chosen": [{"role": "assistant", "content": "a 4"}],
        "rejected": [{"role": "assistant", "content": "b 1"}],
        "chosen_scores": {"helpfulness": 3, "mine": 0.5},
        "rejected_scores": {"helpfulness": 1, "mine": 0.25},
        "scales": {"mine": [0, 1], "helpfulness": [0, 4]},
    }
    released = {
        "prompt": "q",
        "chosen": {"response": "c 3", "helpfulness": "4", "correctness": "3"},
        "rejected": {"response": "d 0", "helpfulness": "2", "correctness": "0"},
    }
    (one,) = read_records(
        scored(write([trl], "trl.jsonl"), "a.jsonl")[0], objectives=("helpfulness", "mine", OBJECTIVE)
    )
    assert [dict(r.scores) for r in one.responses] == [
        {"helpfulness": 3, "mine": 0.5, OBJECTIVE: 4},
        {"helpfulness": 1, "mine": 0.25, OBJECTIVE: 1},
    ]
    two = scored(write([released], "released.jsonl"), "b.jsonl")[0]
    (two,) = read_records(two, objectives=("helpfulness", "correctness", OBJECTIVE))
    assert [dict(r.scores) for r in two.responses] == [
        {"helpfulness": 4, "correctness": 3, OBJECTIVE: 3},
        {"helpfulness": 2, "correctness": 0, OBJECTIVE: 0},
    ]


def test_one_response_and_no_scores_are_enough(write):
    path = write([{"prompt": "p", "responses": [{"text": "t"}]}])
    (entry,) = source(path)
    assert entry.texts == ("t",) and entry.wanted == (True,)


def test_a_limit_counts_records(write, rows):
    assert len(list(source(write(rows(5)), limit=2))) == 2


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"prompt": ""}, "empty"),
        ({"prompt": 3}, "string or a list"),
        ({"responses": []}, "at least one"),
        ({"responses": "x"}, "at least one"),
        ({"responses": ["x"]}, "response 1 must be an object"),
        ({"responses": [{"text": " "}]}, "text of response 1 is empty"),
        ({"responses": [{"scores": {}}]}, "text of response 1"),
        ({"responses": [{"text": "t", "scores": 3}]}, "scores of response 1"),
        ({"responses": [{"text": "\ud800"}]}, "half a character"),
        ({"scales": {OBJECTIVE: 4}}, "scale of objective"),
        ({"id": "r0"}, "stands on line 1 already"),
    ],
)
def test_a_row_that_cannot_be_used_is_named_by_line(write, rows, change, words):
    good, bad = rows(2)
    with pytest.raises(DataError, match=words) as raised:
        list(source(write([good, {**bad, **change}])))
    assert raised.value.line == 2


def test_a_row_without_responses_is_named(write, rows):
    with pytest.raises(DataError, match='line 2.*no "responses"'):
        list(source(write([*rows(1), {"prompt": "p"}])))


def test_half_a_character_in_another_field_is_written_as_it_was_and_named(scored, write, rows):
    given = rows(3)
    given[1] |= {"meta": {"tags": ["fine", "\ud83d"]}}
    path = write(given)
    out, written = scored(path)
    found = [json.loads(line) for line in out.read_text(encoding="utf-8").splitlines()]
    assert found[1]["meta"] == given[1]["meta"]
    assert written.half_characters.count == 1 and written.half_characters.first == [
        f"{path}:2: its field 'meta.tags[1]'"
    ]


def test_ids_take_no_text_of_theirs_and_twice_is_named_with_both_lines(write, rows):
    given = rows(4)
    given[3]["id"] = given[1]["id"]
    with pytest.raises(DataError, match="line 4: the id 'r1' stands on line 2 already; ids must be unique"):
        list(source(write(given)))


def test_a_field_that_a_pair_has_no_place_for_is_named_by_line(write):
    pair = {
        "prompt": "p",
        "chosen": "a",
        "rejected": "b",
        "chosen_scores": {"wit": 1},
        "rejected_scores": {"wit": 0},
        "responses": 7,
    }
    path = write([pair])
    with pytest.raises(DataError, match="line 1: its field 'responses' would overwrite"):
        list(source(path, format="trl"))
