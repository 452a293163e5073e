"""The journal loses nothing that it said it had, and belongs to one process at a time."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

from amopo.data import DataError
from amopo.data.annotate import Journal

A, B, C = "a" * 64, "b" * 64, "c" * 64


def answered(journal, key, score=3.0, **changes):
    journal.answered(key, **{"ask": 1, "score": score, "reason": "ok", "tokens": (100, 10), **changes})


def unreadable(journal, key, ask, text="hm"):
    journal.unreadable(key, ask=ask, why=f"fault {ask}", text=text, tokens=(100, 10))


def test_what_was_recorded_is_there_again(tmp_path):
    with Journal(tmp_path / "j") as journal:
        answered(journal, A, 2.5)
        unreadable(journal, B, 1)
        unreadable(journal, B, 2, text="")
        journal.refused(C, ask=1, why="HTTP 400")
        before = [journal.state(key) for key in (A, B, C)]
        secret = journal.secret
    with Journal(tmp_path / "j") as journal:
        assert [journal.state(key) for key in (A, B, C)] == before
        assert journal.secret == secret and len(journal) == 1
        assert journal.tokens == (300, 30)
    assert before[0].score == 2.5
    # the last reply that had a text is the one to show
    assert (before[1].asks, before[1].why, before[1].unreadable) == (2, "fault 2", ("hm", "fault 1"))
    assert before[2].refused and before[2].why == "HTTP 400"


def test_the_first_score_of_a_question_counts(tmp_path):
    with Journal(tmp_path) as journal:
        answered(journal, A, 1)
        answered(journal, A, 4)
        unreadable(journal, A, 2)
        assert journal.state(A).score == 1
    assert Journal.peek(tmp_path).state(A).score == 1


def test_each_entry_is_on_disk_before_the_call_returns(tmp_path, monkeypatch):
    with Journal(tmp_path) as journal:
        synced = []
        real = os.fsync
        monkeypatch.setattr(os, "fsync", lambda fd: (synced.append(journal.path.read_bytes()), real(fd)))
        for number, key in enumerate((A, B, C)):
            answered(journal, key)
            # one sync per entry, and the entry stood in the file when it came
            assert len(synced) == number + 1 and synced[-1].endswith(b"\n") and key.encode() in synced[-1]


def test_a_line_cut_off_anywhere_costs_that_line_alone(tmp_path):
    with Journal(tmp_path / "whole") as journal:
        answered(journal, A, 1)
        answered(journal, B, 2)
    whole = (tmp_path / "whole" / "answers.jsonl").read_bytes()
    last = whole.rstrip(b"\n").rindex(b"\n") + 1
    for end in range(last, len(whole)):
        folder = tmp_path / str(end)
        folder.mkdir()
        (folder / "answers.jsonl").write_bytes(whole[:end])
        with Journal(folder) as journal:
            assert journal.state(A).score == 1
            # complete but for the end of its line, it is an answer
            assert journal.state(B).score == (2 if end == len(whole) - 1 else None)
            assert journal.broken_lines == (last < end < len(whole) - 1)
            answered(journal, C, 4)
        # what comes after the broken line is not a part of it
        assert Journal.peek(folder).state(C).score == 4


@pytest.mark.parametrize(
    "line",
    ["\x00" * 40, "[1]", '{"key": "zz", "ask": 1, "score": 1}', f'{{"key": "{C}", "ask": 1, "score": NaN}}', "{}"],
)
def test_a_broken_line_in_the_middle_is_skipped_and_counted(tmp_path, line):
    with Journal(tmp_path) as journal:
        answered(journal, A)
    with open(tmp_path / "answers.jsonl", "a") as file:
        file.write(line + "\n")
    with Journal(tmp_path) as journal:
        answered(journal, B)
    found = Journal.peek(tmp_path)
    assert found.broken_lines == 1 and len(found) == 2


def test_a_crash_before_the_first_line_is_whole_leaves_a_usable_folder(tmp_path):
    (tmp_path / "answers.jsonl").write_text('{"journal": "amopo ann')
    with Journal(tmp_path) as journal:
        answered(journal, A)
    assert Journal.peek(tmp_path).state(A).score == 3


@pytest.mark.parametrize(
    ("first", "words"),
    [
        ('{"text": "mine"}', "no journal of amopo"),
        ('{"journal": "x", "format": 99, "secret": "00"}', "another version"),
    ],
)
def test_another_file_is_not_taken_for_a_journal(tmp_path, first, words):
    path = tmp_path / "answers.jsonl"
    path.write_text(first + "\n")
    with pytest.raises(DataError, match=words), Journal(tmp_path):
        pass
    assert path.read_text() == first + "\n"
    (tmp_path / "lock").unlink()
    with pytest.raises(DataError, match=words):
        Journal.peek(tmp_path)


def test_a_second_run_on_one_journal_is_refused_and_named(tmp_path):
    code = (
        "import sys; from amopo.data.annotate import Journal\n"
        "try:\n    Journal(sys.argv[1]).__enter__()\nexcept ValueError as error:\n    print(error)\n"
    )
    with Journal(tmp_path) as journal:
        answered(journal, A)
        with pytest.raises(DataError, match="another run"), Journal(tmp_path):
            pass
        done = subprocess.run([sys.executable, "-c", code, tmp_path], capture_output=True, text=True, timeout=600)
        assert f"process {os.getpid()}" in done.stdout and "--cache" in done.stdout, done.stderr
        assert Journal.peek(tmp_path).state(A).score == 3  # looking is allowed
        answered(journal, B)
    with Journal(tmp_path) as journal:
        assert len(journal) == 2


def test_looking_writes_nothing(tmp_path):
    assert len(Journal.peek(tmp_path / "none")) == 0
    assert not (tmp_path / "none").exists()


def test_secrets_differ_and_last(tmp_path):
    found = []
    for name in ("one", "two"):
        with Journal(tmp_path / name) as journal:
            found.append(journal.secret)
    assert len(set(found)) == 2 and all(len(secret) == 64 for secret in found)
    header = json.loads((tmp_path / "one" / "answers.jsonl").read_text().splitlines()[0])
    assert header["secret"] == found[0]


def test_a_folder_that_cannot_be_made_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match="--cache"), Journal(tmp_path / "file" / "journal"):
        pass
