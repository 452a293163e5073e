"""How long prompts and responses are, in tokens or in words.

A `Measure` turns text into lists of integers, so that lengths and common beginnings can be counted: `TokenMeasure` as
in training (chat template, end-of-turn token), `WordMeasure` without a tokenizer, one integer per word.
`samples_of_pairs` makes the samples that a trainer would pack, none of them cut.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from amopo.data.chat import ChatEncoder
from amopo.data.schema import DataError, Message, Pair, Scale
from amopo.data.templates import Template, get_template
from amopo.packing.sample import TokenizedSample


class Measure(Protocol):
    """`unit`: what is counted, for tables."""

    unit: str

    def prompt(self, messages: Sequence[Message]) -> list[int]: ...

    def response(self, text: str) -> list[int]: ...


class WordMeasure:
    """Words between spaces; turns and templates add none of their own."""

    unit = "words"

    def __init__(self) -> None:
        self._ids: dict[str, int] = {}

    def prompt(self, messages: Sequence[Message]) -> list[int]:
        return [token for message in messages for token in self.response(message["content"])]

    def response(self, text: str) -> list[int]:
        return [self._ids.setdefault(word, len(self._ids)) for word in text.split()]


class TokenMeasure:
    """Tokens as the trainer sees them."""

    unit = "tokens"

    def __init__(self, tokenizer: Any) -> None:
        self._chat = ChatEncoder(tokenizer)

    def prompt(self, messages: Sequence[Message]) -> list[int]:
        return self._chat.encode([self._chat.prompt_text(messages)])[0]

    def response(self, text: str) -> list[int]:
        return self._chat.response(text)


@dataclass(frozen=True)
class LengthSummary:
    """Of a list of lengths. `most_but_5`: 95 % are at most as long."""

    least: int
    median: int
    mean: float
    most_but_5: int
    most: int


def summarize_lengths(lengths: Sequence[int]) -> LengthSummary:
    """Raises on an empty list."""
    ordered = sorted(lengths)
    return LengthSummary(
        ordered[0],
        ordered[(len(ordered) - 1) // 2],
        sum(ordered) / len(ordered),
        ordered[-(-95 * len(ordered) // 100) - 1],
        ordered[-1],
    )


def samples_of_pairs(
    pairs: Sequence[Pair],
    measure: Measure,
    *,
    objectives: Sequence[str],
    scales: Mapping[str, Scale],
    template: str | Template,
) -> tuple[list[TokenizedSample], list[DataError]]:
    """One sample per pair, and the errors of pairs that cannot be one."""
    template = get_template(template)
    samples: list[TokenizedSample] = []
    errors: list[DataError] = []
    for pair in pairs:
        try:
            prompts = tuple(
                measure.prompt(
                    template.render(pair.prompt, objective=name, score=pair.chosen.scores[name], scale=scales[name])
                )
                for name in objectives
            )
            chosen, rejected = measure.response(pair.chosen.text), measure.response(pair.rejected.text)
            samples.append(TokenizedSample(prompts, chosen, rejected, pair.id))
        except ValueError as error:
            errors.append(DataError(f"sample {pair.id!r}: {error}"))
    return samples, errors
