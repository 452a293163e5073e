"""What annotating a long file keeps in memory, against the figure of the page."""

from __future__ import annotations

import json
import os
import re
import tracemalloc
from pathlib import Path

from amopo.data import Scale
from amopo.data.annotate import Journal, Policy, Source, make_plan, open_questions

from .conftest import OBJECTIVE

PAGE = Path(__file__).resolve().parents[3] / "docs" / "annotate.md"
FEW, MANY = 1000, 6000


def test_memory_grows_by_the_bytes_per_question_that_the_page_states(make_judge, tmp_path, monkeypatch):
    stated = [int(n) for n in re.findall(r"by about (\d+) bytes each, and by at most (\d+)", PAGE.read_text())[0]]
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)
    judge, policy = make_judge(), Policy()

    def peak(count):
        path = tmp_path / f"{count}.jsonl"
        rows = ({"id": f"row {n}", "prompt": f"p {n}", "responses": [{"text": f"a {n}"}]} for n in range(count))
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        source = Source(path, objective=OBJECTIVE, scale=Scale(0, 4))
        with Journal(tmp_path / f"journal-{count}") as journal:
            tracemalloc.start()
            try:
                assert make_plan(source, judge, journal, policy).open == count
                for n, question in enumerate(open_questions(source, judge, journal, policy)):
                    score = float(n % 41) / 10
                    journal.answered(question.key, ask=1, score=score, reason="", tokens=(1, 1))
                return tracemalloc.get_traced_memory()[1]
            finally:
                tracemalloc.stop()

    peak(FEW // 10)  # fills caches
    each = (peak(MANY) - peak(FEW)) / (MANY - FEW)
    # Tables double: between two of their growths a question takes less.
    assert 0.5 * stated[0] < each < 1.2 * sum(stated)
