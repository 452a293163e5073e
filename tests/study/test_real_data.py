"""The rated summaries themselves, against counts by hand. Skips where the data is absent."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from amopo.evaluation.ranking import Ranked
from amopo.study.settings import SUMMEVAL
from amopo.study.summeval import OBJECTIVES, SummevalStudy

ROOT = Path(os.environ.get("AMOPO_DATA") or Path(__file__).resolve().parents[3] / "shared" / "data")
FILE = ROOT / "summeval" / "grouped.jsonl"


@pytest.mark.skipif(not FILE.is_file(), reason=f"{FILE} is absent; name its folder with AMOPO_DATA")
def test_the_study_holds_out_thirty_articles_with_sixteen_rated_summaries_each(tmp_path):
    inputs = SummevalStudy(SUMMEVAL, FILE).read(tmp_path, 1)
    assert (len(inputs.train.records), len(inputs.evaluation.records)) == (70, 30)
    assert {len(record.responses) for record in inputs.evaluation.records} == {16}
    assert len(inputs.train.pairs) == SUMMEVAL.pairs == 480
    rows = {row["prompt"]: row for row in map(json.loads, FILE.read_text(encoding="utf-8").splitlines())}
    record = inputs.evaluation.records[0]
    scores = [response["scores"] for response in rows[record.prompt[0]["content"]]["responses"]]
    means = [sum(one[name] for name in OBJECTIVES) / 4 for one in scores]
    ranked = Ranked({name: [r.scores[name] for r in record.responses] for name in OBJECTIVES}, means, {})
    assert ranked.oracle() == pytest.approx(max(means)) and ranked.random() == pytest.approx(sum(means) / 16)
    assert ranked.oracle("coherence") == max(one["coherence"] for one in scores)
