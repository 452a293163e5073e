"""`amopo data annotate`, as it is called."""

from __future__ import annotations

import contextlib
import json
import sys

import pytest
from annotating import OBJECTIVE, one_error, read, scores_in, texts

from amopo.cli.console import Console
from amopo.cli.main import main
from amopo.data.annotate import Journal

KEY = "sk-very-secret-0123456789"


def test_scores_are_added(annotate, stub, write, rows, tmp_path, expected):
    status, out, err = annotate(write(rows(10)))
    assert (status, err) == (0, "")
    assert scores_in(tmp_path / "out.jsonl") == {text: expected(text) for text in texts(rows(10))}
    assert read(tmp_path / "out.jsonl")[0]["scales"] == {OBJECTIVE: [0, 4]}
    assert "10 records, 20 responses, 20 distinct questions: 0 in the journal, 20 to ask" in out
    assert "2,000 read and 200 written" in out
    assert stub.requests[0].body["temperature"] == 0 and stub.requests[0].body["max_tokens"] == 512


def test_the_same_command_again_asks_nothing(annotate, stub, write, rows):
    path = write(rows(3))
    assert annotate(path)[0] == 0
    assert "--force" in one_error(annotate(path))
    status, out, _ = annotate(path, "--force")
    assert status == 0 and "6 in the journal, 0 to ask" in out and len(stub.requests) == 6


def test_reading_checking_and_writing_show_how_many_records_are_done(annotate, write, rows, monkeypatch):
    told: dict[str, list[int]] = {}

    @contextlib.contextmanager
    def busy(self, title):
        yield told.setdefault(title, []).append

    monkeypatch.setattr(Console, "busy", busy)
    path = write(rows(7))
    assert annotate(path)[0] == 0
    every = list(range(1, 8))
    assert told == {"reading": every, "looking for missing scores": every, "writing": every}
    told.clear()
    assert annotate(path, "--dry-run", out="other.jsonl")[0] == 0
    assert told == {"reading": every}


def test_kept_scores_need_their_scale_named(stub, write, rows, capsys):
    argv = ["data", "annotate", write(rows(1)), "out.jsonl", "--objective=helpfulness", "--existing=keep"]
    status = main([*map(str, argv), f"--endpoint={stub.url}", "--model=judge"])
    assert status == 2 and not stub.requests
    assert "--existing keep: say with --scale low:high" in capsys.readouterr().err


def test_quiet_says_nothing(annotate, write, rows):
    assert annotate(write(rows(2)), "--quiet") == (0, "", "")


def test_a_dry_run_sends_and_writes_nothing(annotate, stub, write, rows, tmp_path):
    (row,) = rows(1)
    row["prompt"] = "Look: \x1b[2J"
    path = write([row])
    status, out, err = annotate(path, "--dry-run", "--api-key-env=NOT_SET")
    assert (status, err) == (0, "")
    assert "2 to ask" in out and "Look: \\x1b[2J" in out and "\x1b" not in out and "one JSON object" in out
    assert not stub.requests and sorted(p.name for p in tmp_path.iterdir()) == ["data.jsonl"]


def test_a_limit_tries_the_first_records_and_the_rest_follows(annotate, stub, write, rows, tmp_path):
    path = write(rows(5))
    assert annotate(path, "--limit=2")[0] == 0 and len(stub.requests) == 4
    assert [row["id"] for row in read(tmp_path / "out.jsonl")] == ["r0", "r1"]
    assert annotate(path, "--force")[0] == 0 and len(stub.requests) == 10
    assert set(stub.counts.values()) == {1}


def test_a_users_rubric_and_more_fields_are_sent(annotate, stub, write, rows, tmp_path):
    (tmp_path / "rubric.txt").write_text("Count the commas, {low} to {high}.")
    flags = [f"--rubric={tmp_path / 'rubric.txt'}", '--request={"max_tokens": null, "max_completion_tokens": 99}']
    assert annotate(write(rows(1)), *flags, "--objective=commas", "--temperature=0.5")[0] == 0
    body = stub.requests[0].body
    assert "Count the commas, 0 to 4." in body["messages"][0]["content"]
    assert (body["temperature"], body["max_completion_tokens"], body["model"]) == (0.5, 99, "judge")
    assert "max_tokens" not in body
    assert "commas" in read(tmp_path / "out.jsonl")[0]["responses"][0]["scores"]


def test_flags_may_stand_in_a_file(annotate, write, rows, tmp_path):
    pytest.importorskip("yaml")
    (tmp_path / "run.yaml").write_text("temperature: 0.5\nscale: [0, 4]\nrequest: {top_p: 0.5}\n")
    assert annotate(write(rows(1)), f"--config={tmp_path / 'run.yaml'}")[0] == 0


def test_a_terminal_without_tqdm_gets_lines(annotate, write, rows, monkeypatch):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    monkeypatch.setitem(sys.modules, "tqdm", None)
    status, out, err = annotate(write(rows(2)))
    assert (status, err) == (0, "") and "asking: 4/4 (100 %)" in out


def test_real_preference_data_get_an_objective_and_stay_what_they_are(annotate, stub, real_data, tmp_path, expected):
    from amopo.data import KNOWN_SCALES, read_records

    path = real_data("helpsteer2_sample100")
    assert annotate(path, "--concurrency=8")[0] == 0
    before = read_records(path, objectives=list(KNOWN_SCALES), scales=KNOWN_SCALES)
    after = read_records(tmp_path / "out.jsonl", objectives=[*KNOWN_SCALES, OBJECTIVE], scales=KNOWN_SCALES)
    assert len(before) == len(after) == 50 and len(stub.requests) == len({r.raw for r in stub.requests})
    for old, new in zip(before, after):
        assert (old.id, old.prompt) == (new.id, new.prompt)
        for one, two in zip(old.responses, new.responses):
            assert one.text == two.text and two.scores == {**one.scores, OBJECTIVE: expected(one.text)}


# What fails


def test_failed_questions_end_with_reasons_and_without_a_file(annotate, stub, actions, write, rows, tmp_path):
    path, bad = write(rows(3)), "Prompt 1, answer 1"
    stub.plan(bad, *[actions.say('{"score": 9}')] * 4)
    outcome = annotate(path)
    message = one_error(outcome, status=1)
    assert f"{path}:2, response 1: the score 9 is outside the scale from 0 to 4" in message
    assert "--retry-failed" in message and "--allow-missing" in message
    assert not (tmp_path / "out.jsonl").exists() and stub.counts[bad] == 3
    status, out, _ = annotate(path, "--allow-missing")
    assert status == 0 and "1 responses have no score" in out and stub.counts[bad] == 3
    assert scores_in(tmp_path / "out.jsonl")[bad] is None
    assert annotate(path, "--drop-missing", "--force")[0] == 0
    assert [row["id"] for row in read(tmp_path / "out.jsonl")] == ["r0", "r2"]
    # four bad replies in all: the second one of the second round is good
    assert annotate(path, "--retry-failed", "--force")[0] == 0
    assert scores_in(tmp_path / "out.jsonl")[bad] == 1 and stub.counts[bad] == 5
    assert [count for text, count in stub.counts.items() if text != bad] == [1] * 5


def test_a_wrong_key_stops_at_once_and_is_never_shown(annotate, stub, actions, write, rows, tmp_path, monkeypatch):
    monkeypatch.setenv("JUDGE_KEY", KEY)
    answer = json.dumps({"error": {"message": f"Incorrect API key provided: {KEY}"}})
    stub.default = lambda request: actions.status(401, text=answer)
    status, out, err = annotate(write(rows(9)), "--api-key-env=JUDGE_KEY", "--concurrency=1")
    assert one_error((status, out, err), status=1).count("--api-key-env") == 1 and len(stub.requests) == 1
    assert stub.requests[0].headers["Authorization"] == f"Bearer {KEY}"
    # nor does a judge that repeats it bring it into the journal
    stub.default = lambda request: actions.say(json.dumps({"reason": KEY, "score": 1}))
    stub.plan("Prompt 0, answer 0", actions.say(KEY), actions.raw(json.dumps({"error": KEY}).encode()))
    more = annotate(write(rows(9)), "--api-key-env=JUDGE_KEY")
    assert more[0] == 0
    written = [path.read_text() for path in tmp_path.rglob("*") if path.is_file()]
    assert all(KEY not in text for text in [out, err, *more[1:], *written])


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--api-key-env=NOT_SET"], ["--api-key-env", "never the key itself"]),
        (["--scale=4"], ["--scale", "low:high"]),
        (["--scale=4:0"], ["--scale", "low:high"]),
        (["--scale=0:4,x=1:2"], ["--scale", "low:high"]),
        (["--objective=politness"], ["politness", "--rubric"]),
        (["--objective="], ["objective"]),
        (["--endpoint=localhost:8000"], ["--endpoint", "http://"]),
        (["--model= "], ["--model"]),
        (["--concurrency=0"], ["--concurrency", "at least 1"]),
        (["--max-retries=-1"], ["--max-retries", "at least 0"]),
        (["--max-asks=0"], ["--max-asks"]),
        (["--limit=0"], ["--limit"]),
        (["--timeout=0"], ["--timeout"]),
        (["--temperature=-1"], ["--temperature"]),
        (["--existing=some"], ["--existing", "replace"]),
        (["--request={"], ["--request", "JSON"]),
        (["--request=[1]"], ["--request", "object"]),
        (['--request={"messages": []}'], ["--request", "messages"]),
        (['--request={"x": NaN}'], ["--request"]),
        (["--rubric=none.txt"], ["none.txt"]),
        (["--format=csv"], ["--format", "grouped"]),
        (["--scael=0:4"], ["--scael", "did you mean --scale"]),
    ],
)
def test_a_setting_that_cannot_work_is_named_before_anything_is_sent(annotate, stub, write, rows, flags, words):
    message = one_error(annotate(write(rows(1)), *flags))
    assert all(word in message for word in words), message
    assert not stub.requests


def test_files_are_checked_before_anything_is_sent(annotate, stub, write, rows, tmp_path):
    path = write([*rows(3), {"id": "x", "prompt": "p", "responses": [{"text": ""}]}])
    assert "line 4" in one_error(annotate(path))
    assert "does not exist" in one_error(annotate(tmp_path / "none.jsonl"))
    path = write(rows(1))
    assert "OUT is FILE" in one_error(annotate(path, out=path))
    assert "is a folder" in one_error(annotate(path, out=tmp_path))
    assert "not writable" in one_error(annotate(path, out=tmp_path / "none" / "out.jsonl"))
    with Journal(tmp_path / "out.jsonl.journal"):
        assert "another run" in one_error(annotate(path))
    assert not stub.requests


def test_what_is_missing_from_the_command_line_is_named(capsys):
    for argv, words in ((["a", "b"], "--objective"), (["a"], "--out"), ([], "--file")):
        assert main(["data", "annotate", *argv]) == 2
        assert words in capsys.readouterr().err
    assert main(["data", "anotate"]) == 2 and "did you mean annotate?" in capsys.readouterr().err
    assert main(["data"]) == 0 and "annotate" in capsys.readouterr().out
    assert main(["data", "annotate", "--help"]) == 0 and "--endpoint" in capsys.readouterr().out
