"""The released form of AMoPO: what it becomes, and what each bad row says."""

from __future__ import annotations

import pytest
from form_rows import GOOD, POOR, assistant, read, refused, released, shown, user


def test_the_released_form_is_read_from_an_array_and_from_lines(write_json, write_jsonl):
    rows = [released(id="a", source="x"), released({"helpfulness": 2.5})]
    for path in (write_json(rows), write_jsonl(*rows)):
        one, two = read(path)
        assert shown(one) == (["Is snow cold?"], [("yes", GOOD), ("no", POOR)])
        assert one.id == "a" and one.extra == {"source": "x"}
        assert two.responses[0].scores == {"helpfulness": 2.5, "correctness": 4}
        # an array has no lines of its own
        assert two.id == ("row-2" if path.suffix == ".json" else "line-2")


def test_the_released_form_may_carry_turn_markers_or_messages(write_json):
    marked = "Hi\n<extra_id_1>Assistant\nHello\n<extra_id_1>User\nIs snow cold?"
    turns = [user("Hi"), assistant("Hello"), user("Is snow cold?")]
    one, two = read(write_json([released(prompt=marked), released(prompt=turns)]))
    assert list(one.prompt) == list(two.prompt) == turns


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (released({"helpfulness": "high"}), "chosen for objective 'helpfulness' is 'high'; a finite number is needed"),
        (released({"helpfulness": "nan"}), "chosen for objective 'helpfulness' is nan"),
        (released(rejected={"correctness": "5"}), "rejected for objective 'correctness' is 5.0, outside its scale"),
        (released(rejected={"response": ""}), "the text of rejected is empty"),
        (released() | {"rejected": "no"}, '"rejected" must be an object with "response" and scores'),
        ({"prompt": "x", "chosen": {"helpfulness": "3"}, "rejected": {}}, '"chosen" has no "response"'),
        ({"prompt": "x", "chosen": {"response": "y"}}, 'the row has no "rejected"'),
        (released(prompt="a<extra_id_1>b"), "the turn marker '<extra_id_1>' without User"),
    ],
)
def test_a_bad_released_row_is_named(write_jsonl, row, message):
    refused(write_jsonl(released(), row), "data.jsonl, line 2: ", message)


def test_a_score_that_the_released_form_lacks_is_named(write_jsonl):
    row = released()
    del row["rejected"]["correctness"]
    refused(write_jsonl(released(), row), "line 2: rejected has no score for objective 'correctness'")
