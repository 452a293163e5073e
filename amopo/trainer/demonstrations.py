"""Preference records as demonstrations to imitate.

Contract
--------
`demonstrations(records, tokenizer, ...)` makes one `Demonstration` of every response of every record, good and bad
alike: imitation is to reproduce the data's mixed quality, and leaves preferring to what comes after. A share of them
(`conditioned`) shows one objective's template with the score that this response really has, so that the model learns
what the templates mean; the others show the plain prompt. Which ones, and which objective, the seed decides.

Prompts and responses are cut as in `amopo.data.tokenize`.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from typing import Any

from amopo.data.chat import ChatEncoder
from amopo.data.schema import Message, PreferenceRecord, Scale
from amopo.data.templates import Template, get_template
from amopo.data.truncate import fit_prompt
from amopo.trainer.imitation import Demonstration


def demonstrations(
    records: Sequence[PreferenceRecord],
    tokenizer: Any,
    *,
    objectives: Sequence[str],
    scales: Mapping[str, Scale],
    template: str | Template = "rubric",
    conditioned: float = 0.5,
    max_prompt_length: int = 512,
    max_response_length: int = 512,
    seed: int = 0,
) -> list[Demonstration]:
    if not 0 <= conditioned <= 1:
        raise ValueError(f"conditioned is a share between 0 and 1, not {conditioned}")
    template, chat, draw = get_template(template), ChatEncoder(tokenizer), random.Random(seed)

    made = []
    for record in records:
        for response in record.responses:
            name = draw.choice(list(objectives)) if draw.random() < conditioned else None
            score = None if name is None else response.scores[name]

            def encode(
                messages: Sequence[Message], name: str | None = name, score: float | None = score
            ) -> list[list[int]]:
                if name is not None:
                    messages = template.render(messages, objective=name, score=score, scale=scales[name])
                return chat.encode([chat.prompt_text(messages)])

            prompt = fit_prompt(record.prompt, encode, limit=max_prompt_length, name=record.label)
            made.append(Demonstration(prompt.ids[0], chat.response(response.text)[:max_response_length]))
    return made
