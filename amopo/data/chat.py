"""A tokenizer's chat template as token ids.

    chat = ChatEncoder(tokenizer)
    chat.prompt_text(messages)      text up to and including the assistant header
    chat.encode([text, ...])        token ids of such texts
    chat.response(text)             token ids of one assistant turn, end-of-turn token included

The response is tokenised apart from the prompt, so the boundary between them is the same for all K prompts and no merge
crosses it. Its ids are what the chat template adds for an assistant turn: an opening if the template writes one, the
text, the end-of-turn token. What a template writes after that token (mostly a newline) is left out: a model stops
there.

Some templates are not prefix-preserving: with the answer added, they no longer begin with the prompt's text. Others end
the turn without a special token. Then the response is the bare text and the tokenizer's eos token, and `from_template`
is False. A tokenizer without a chat template raises ValueError. Whatever the template itself raises comes as a
ValueError with its words.

Text of users and responses is text. Where a message contains the text of a special token, such as "<|im_end|>", the
template's output could not be told from it, so `prompt_text` raises `DataError`. In a response such text is spelled out
in ordinary tokens (`split_special_tokens`); a tokenizer that cannot do so raises `DataError`.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from amopo.data.schema import DataError, Message

_PROBE = "Hello there"


class ChatEncoder:
    """Prompts and responses of one tokenizer. `tokenizer` is a Hugging Face tokenizer, or acts like one."""

    def __init__(self, tokenizer: Any) -> None:
        if not getattr(tokenizer, "chat_template", None):
            raise ValueError(
                "the tokenizer has no chat template; use an instruct model's tokenizer, or set tokenizer.chat_template"
            )
        self.tokenizer = tokenizer
        # Longest first, so that a message names the whole token.
        texts = sorted(_special_texts(tokenizer), key=lambda text: (-len(text), text))
        self._special_text = re.compile("|".join(map(re.escape, texts))) if texts else None
        self._opening, self._end_ids, self.from_template = self._assistant_turn()
        # A template that strips the content must not see its spaces come back here.
        spaced = f"  {_PROBE}  "
        self._strips = self.from_template and spaced not in self._render(
            [_user(_PROBE), _assistant(spaced)], prompt=False
        )

    @property
    def end_of_turn_id(self) -> int:
        """The token that ends every response; generation stops there."""
        return self._end_ids[-1]

    def prompt_text(self, messages: Sequence[Message]) -> str:
        for number, message in enumerate(messages, start=1):
            if token := self._find_special(message["content"]):
                raise DataError(
                    f"message {number} of the prompt contains {token!r}, which the tokenizer reads as a special token "
                    "and not as text; remove it from the prompt or rewrite it"
                )
        return self._render(messages, prompt=True)

    def encode(self, texts: Sequence[str]) -> list[list[int]]:
        # The chat template has written the special tokens already. verbose=False: lengths are limited by the caller.
        encoded = self.tokenizer(list(texts), add_special_tokens=False, verbose=False)["input_ids"]
        return [list(ids) for ids in encoded]

    def response(self, text: str) -> list[int]:
        text = text.strip() if self._strips else text
        token = self._find_special(text)
        if token is None:
            return self.encode([self._opening + text])[0] + self._end_ids
        opening = self.encode([self._opening])[0] if self._opening else []
        return opening + self._encode_plain(text, token) + self._end_ids

    def _find_special(self, text: str) -> str | None:
        found = self._special_text.search(text) if self._special_text else None
        return found.group() if found else None

    def _encode_plain(self, text: str, token: str) -> list[int]:
        """Ids of a text whose special tokens are spelled out."""
        try:
            encoded = self.tokenizer([text], add_special_tokens=False, verbose=False, split_special_tokens=True)
            ids = list(encoded["input_ids"][0])
        except TypeError:  # a tokenizer without that option
            ids = None
        if ids is None or not _special_ids(self.tokenizer).isdisjoint(ids):
            raise DataError(
                f"a response contains {token!r}, which this tokenizer can only read as a special token and not as "
                "text; remove it from the response or rewrite it"
            )
        return ids

    def _render(self, messages: Sequence[Message], *, prompt: bool) -> str:
        try:
            return self.tokenizer.apply_chat_template(list(messages), tokenize=False, add_generation_prompt=prompt)
        except Exception as error:  # a chat template is a program of its own and may raise anything
            roles = ", ".join(message["role"] for message in messages)
            raise ValueError(
                f"the tokenizer's chat template refuses messages with the roles {roles}: {error}"
            ) from error

    def _assistant_turn(self) -> tuple[str, list[int], bool]:
        """What stands before and after an assistant's text, learnt from a probe."""
        prompt = self._render([_user(_PROBE)], prompt=True)
        full = self._render([_user(_PROBE), _assistant(_PROBE)], prompt=False)
        if full.startswith(prompt):
            opening, found, closing = full[len(prompt) :].partition(_PROBE)
            closing_ids = self.encode([closing])[0] if found and closing else []
            special = _special_ids(self.tokenizer)
            for position, token in enumerate(closing_ids):
                if token in special:
                    return opening, closing_ids[: position + 1], True
        if self.tokenizer.eos_token_id is None:
            raise ValueError(
                "the tokenizer's chat template ends the assistant's turn without a special token, and there is no eos "
                "token; set tokenizer.eos_token"
            )
        return "", [self.tokenizer.eos_token_id], False


def _special_ids(tokenizer: Any) -> set[int]:
    added = getattr(tokenizer, "added_tokens_decoder", {})
    return {*tokenizer.all_special_ids, *(token_id for token_id, token in added.items() if token.special)}


def _special_texts(tokenizer: Any) -> set[str]:
    added = getattr(tokenizer, "added_tokens_decoder", {})
    known = {*getattr(tokenizer, "all_special_tokens", ()), *(str(t) for t in added.values() if t.special)}
    return {text for text in known if text}


def _user(content: str) -> Message:
    return {"role": "user", "content": content}


def _assistant(content: str) -> Message:
    return {"role": "assistant", "content": content}
