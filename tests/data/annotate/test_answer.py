"""Which replies hold a score."""

from __future__ import annotations

import json

import pytest

from amopo.data import Scale
from amopo.data.annotate.answer import Completion, UnreadableReply, read_completion, read_score


def read(text, *, scale=(0, 4), whole=True, finish="stop"):
    return read_score(Completion(text, finish, 0, 0), Scale(*scale), whole=whole).score


@pytest.mark.parametrize(
    "text",
    [
        '{"reason": "fine", "score": 3}',
        '{"score": 3.0}',
        '{"score": "3"}',
        '```json\n{"reason": "fine", "score": 3}\n```',
        'Here it is: {"score": 3}. Done.',
        'The set {1, 2} is right. {"score": 3}',
        '<think>{"score": 1}? No.</think>\n{"score": 3}',
        'the template opened the block. {"score": 1}</think>{"score": 3}',
        '{"details": {"a": 1}, "score": 3}',
        '{"reason": "it says \\"{\\\\\\"score\\\\\\": 4}\\" itself, and </think>", "score": 3}',
        '{"other": 1} {"score": 3}',
    ],
)
def test_one_object_with_a_score_is_an_answer(text):
    assert read(text) == 3


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "empty"),
        ("<think>hm</think> ", "empty"),
        ("three", "no JSON object"),
        ('{"reason": "no"}', "no JSON object"),
        ('{"score": 3', "no JSON object"),
        ('[{"a": 1}]', "no JSON object"),
        ('{"score": 4} {"score": 3}', "2 JSON objects"),
        ('{"score": 5}', "outside the scale from 0 to 4"),
        ('{"score": -1}', "outside"),
        ('{"score": 1e999}', "no number"),
        ('{"score": NaN}', "no number"),
        ('{"score": true}', "no number"),
        ('{"score": [3]}', "no number"),
        ('{"score": "3/4"}', "no number"),
        ('{"score": 3.5}', "no whole number"),
        ("{" * 5000, "no JSON object"),
        ('{"a":' * 5000, "no JSON object"),
    ],
)
def test_anything_else_is_none_and_says_why(text, words):
    with pytest.raises(UnreadableReply, match=words):
        read(text)


def test_fractions_count_where_they_were_allowed():
    assert read('{"score": 3.5}', whole=False) == 3.5
    assert read('{"score": 0.25}', scale=(0, 0.5), whole=False) == 0.25


@pytest.mark.parametrize(("finish", "words"), [("length", "--max-tokens"), ("content_filter", "filter")])
def test_a_reply_that_did_not_end_by_itself_is_not_read(finish, words):
    with pytest.raises(UnreadableReply, match=words):
        read('{"score": 3}', finish=finish)


def test_a_completion_gives_text_and_tokens():
    body = {
        "choices": [{"message": {"content": "hi"}, "finish_reason": "stop"}],
        "usage": {"prompt_tokens": 7, "completion_tokens": 2},
    }
    assert read_completion(json.dumps(body).encode()) == Completion("hi", "stop", 7, 2)
    # servers that count nothing, or answer with nothing
    body = {"choices": [{"message": {"content": None}}], "usage": {"prompt_tokens": None}}
    assert read_completion(json.dumps(body).encode()) == Completion("", None, 0, 0)


@pytest.mark.parametrize(
    "body", [b"", b"<html>", b"\xff", b"[]", b"{}", b'{"choices": []}', b'{"choices": [1]}', b"[" * 100_000]
)
def test_another_body_is_no_completion(body):
    with pytest.raises(UnreadableReply, match="server's answer"):
        read_completion(body)


def test_an_error_inside_a_body_is_shown():
    with pytest.raises(UnreadableReply, match="overloaded"):
        read_completion(b'{"error": {"message": "overloaded"}}')
