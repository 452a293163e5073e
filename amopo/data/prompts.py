"""Prompts as chat messages.

`parse_prompt(value) -> tuple[Message, ...]` takes a string (one user message) or a list of {"role", "content"} that
ends with the user. `split_turns(text)` reads the turn markers that HelpSteer2 writes into multi-turn prompts. Content
is text only. What cannot be used raises `DataError` without file and line; the reader adds them.

HelpSteer2 writes "first question\n<extra_id_1>Assistant\nanswer\n<extra_id_1>User\nsecond question": the first user
turn has no marker, and the last turn is the user's (the answer to it is the row's response). A marker before the first
turn, an empty assistant turn at the end and a system turn (<extra_id_0>System) come up in other data of that family and
are read too. A marker that names no role would be trained as text, so it raises.
"""

from __future__ import annotations

import re

from amopo.data.schema import DataError, Message, check_text

ROLES = ("system", "user", "assistant")
_MARKER = "<extra_id_1>"
_TURN = re.compile(r"(?:\A<extra_id_0>|\n?<extra_id_1>)(User|Assistant|System)(?:\n|\Z)")


def parse_prompt(value: object) -> tuple[Message, ...]:
    if isinstance(value, str):
        value = [{"role": "user", "content": value}]
    if not isinstance(value, list):
        raise DataError(f"the prompt must be a string or a list of messages, but is {type(value).__name__}")
    if not value:
        raise DataError("the prompt has no messages; it needs at least one from the user")
    messages = tuple(_parse_message(message, number) for number, message in enumerate(value, start=1))
    if messages[-1]["role"] != "user":
        raise DataError(
            f"the prompt's last message must be from the user, but is from {messages[-1]['role']!r}; "
            "move the assistant's answer to the responses"
        )
    return messages


def _parse_message(message: object, number: int) -> Message:
    if not isinstance(message, dict) or not {"role", "content"} <= message.keys():
        raise DataError(
            f'message {number} of the prompt must be an object with "role" and "content", but is {message!r:.80}'
        )
    role, content = message["role"], message["content"]
    if role not in ROLES:
        raise DataError(f"message {number} of the prompt has the role {role!r}; roles are {', '.join(ROLES)}")
    check_text(content, f"the content of message {number} of the prompt")
    if unread := message.keys() - {"role", "content"}:
        raise DataError(
            f"message {number} of the prompt has fields that are not read: {', '.join(sorted(unread))}; remove them"
        )
    return {"role": role, "content": content}


def split_turns(text: object) -> object:
    """Text with HelpSteer2's turn markers as a list of messages; anything else as it is."""
    if not isinstance(text, str) or _MARKER not in text:
        return text
    first, *turns = _TURN.split(text)
    messages = [{"role": "user", "content": first}] if first else []
    messages += [
        {"role": role.lower(), "content": content} for role, content in zip(turns[::2], turns[1::2], strict=True)
    ]
    for message in messages:
        if _MARKER in message["content"]:
            raise DataError(
                f"the prompt holds the turn marker {_MARKER!r} without User, Assistant or System and a new line after "
                "it; write the turns as messages, or remove the marker"
            )
    # A system turn without text, and the header of the turn that is to be written.
    messages = [m for m in messages if m["role"] != "system" or m["content"].strip()]
    if messages and messages[-1]["role"] == "assistant" and not messages[-1]["content"].strip():
        messages.pop()
    return messages
