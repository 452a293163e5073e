"""What a model answers to a few prompts, for people to read.

Contract
--------
`sample_responses(model, tokenizer, records, ...)` -> one {"prompt", "response"} per record: the likeliest response to
the prompt as it is, without an objective's template. A prompt of one message is shown as its text, a longer one with
the role before each. Prompts beyond `max_prompt_length` tokens are cut as in training, and shown whole.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from amopo.data.chat import ChatEncoder
from amopo.data.schema import Message, PreferenceRecord
from amopo.data.truncate import fit_prompt
from amopo.evaluation.generate import generate

BATCH_SIZE = 8


def sample_responses(
    model: Any,
    tokenizer: Any,
    records: Sequence[PreferenceRecord],
    *,
    max_prompt_length: int = 512,
    max_new_tokens: int = 128,
) -> list[dict[str, str]]:
    chat = ChatEncoder(tokenizer)

    def encode(messages: Sequence[Message]) -> list[list[int]]:
        return chat.encode([chat.prompt_text(messages)])

    fitted = [
        fit_prompt(record.prompt, encode, limit=max_prompt_length, name=f"sample {record.id!r}") for record in records
    ]
    responses = generate(
        model,
        tokenizer,
        [chat.prompt_text(prompt.messages) for prompt in fitted],
        end_of_turn_id=chat.end_of_turn_id,
        max_new_tokens=max_new_tokens,
        batch_size=BATCH_SIZE,
    )
    return [
        {"prompt": _shown(record.prompt), "response": response}
        for record, response in zip(records, responses, strict=True)
    ]


def _shown(messages: Sequence[Message]) -> str:
    if len(messages) == 1:
        return messages[0]["content"]
    return "\n\n".join(f"[{message['role']}]\n{message['content']}" for message in messages)
