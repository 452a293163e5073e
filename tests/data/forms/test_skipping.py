"""Bad rows of every form can be skipped, and are told."""

from __future__ import annotations

import pytest
from form_rows import GOOD, completion, helpsteer2, instruction, read, released, trl


@pytest.mark.parametrize(
    ("rows", "bad"),
    [
        ([trl(), trl(), trl()], trl(chosen_scores={})),
        ([released(), released(), released()], released({"helpfulness": "9"})),
        (helpsteer2("p", "q", "r"), {"prompt": "x", "response": "y", **GOOD}),
        (
            [instruction(completion("a"), completion("b"))] * 3,
            instruction(completion("a", helpfulness="9"), completion("b")),
        ),
    ],
    ids=["trl", "amopo", "helpsteer2", "ultrafeedback"],
)
def test_bad_rows_can_be_skipped_and_told(write_jsonl, rows, bad):
    errors = []
    path = write_jsonl(*rows[:2], bad, '{"broken', *rows[2:])
    records = read(path, ["helpfulness"], on_error=errors.append)
    assert len(records) == 3
    assert [error.line for error in errors] in ([3, 4], [4, 3])
    assert all(str(error).startswith(str(path)) for error in errors)
