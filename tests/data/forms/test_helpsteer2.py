"""HelpSteer2's rows: what they become, and what each bad row says."""

from __future__ import annotations

import pytest
from form_rows import helpsteer2, read, refused


@pytest.mark.parametrize(
    ("text", "roles"),
    [
        ("Is snow cold?", ["user"]),
        ("Hi\n<extra_id_1>Assistant\nHello\n<extra_id_1>User\nIs snow cold?", ["user", "assistant", "user"]),
        # of the same family: a marker before the first turn, a header of the answer at the end, a system turn
        ("<extra_id_1>User\nIs snow cold?\n<extra_id_1>Assistant\n", ["user"]),
        ("<extra_id_0>System\nBe kind.\n<extra_id_1>User\nIs snow cold?", ["system", "user"]),
        ("<extra_id_0>System\n\n<extra_id_1>User\nIs snow cold?\n<extra_id_1>Assistant\n", ["user"]),
    ],
)
def test_helpsteer2_prompts_become_turns(write_jsonl, text, roles):
    (record,) = read(write_jsonl(*helpsteer2(text)))
    assert [m["role"] for m in record.prompt] == roles
    assert record.prompt[-1]["content"] == "Is snow cold?"
    assert not any("extra_id" in m["content"] or m["content"] != m["content"].strip() for m in record.prompt)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a <extra_id_1> b", "the prompt holds the turn marker '<extra_id_1>' without User, Assistant or System"),
        ("a\n<extra_id_1>Robot\nb", "the turn marker '<extra_id_1>'"),
        ("a\n<extra_id_1>Assistant\nb", "the prompt's last message must be from the user"),
        ("a\n<extra_id_1>Assistant\n\n<extra_id_1>User\nb", "the content of message 2 of the prompt is empty"),
    ],
)
def test_turns_that_cannot_be_told_are_refused(write_jsonl, text, message):
    refused(write_jsonl(*helpsteer2("fine"), *helpsteer2(text)), "line 3: ", message)


def test_a_helpsteer2_row_without_a_response_is_named(write_jsonl):
    refused(write_jsonl(*helpsteer2("p"), {"prompt": "p"}), "line 3: the row has no \"response\"; it has 'prompt'")
