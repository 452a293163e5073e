"""Generated parts of a document, between two lines that mark them."""

from __future__ import annotations


def between(document: str, begin: str, end: str, text: str, *, name: str = "the document") -> str:
    """The document with `text` between the lines `begin` and `end`.

    Raises:
        ValueError: the document, called `name`, does not hold each of the two once, in this order.
    """
    if document.count(begin) != 1 or document.count(end) != 1 or document.index(begin) > document.index(end):
        raise ValueError(f"{name} must hold each of these lines once, in this order: {begin!r}, {end!r}")
    head, rest = document.split(begin)
    return f"{head}{begin}\n\n{text.strip()}\n\n{end}{rest.split(end)[1]}"


def not_of_today(result: str, document: str, *, is_planned: bool, is_written: bool) -> list[str]:
    """What `--check` says of a committed result and of the tables that are made of it."""
    wrong = []
    if not is_planned:
        wrong.append(f"{result} holds other plans than are made today; run with --replan")
    if not is_written:
        wrong.append(f"{document} is not what the result says; run with --replan")
    return wrong
