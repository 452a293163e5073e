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
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from amopo.data.schema import Message

_PROBE = "Hello there"


class ChatEncoder:
    """Prompts and responses of one tokenizer. `tokenizer` is a Hugging Face tokenizer, or acts like one."""

    def __init__(self, tokenizer: Any) -> None:
        if not getattr(tokenizer, "chat_template", None):
            raise ValueError(
                "the tokenizer has no chat template; use an instruct model's tokenizer, or set tokenizer.chat_template"
            )
        self.tokenizer = tokenizer
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
        return self._render(messages, prompt=True)

    def encode(self, texts: Sequence[str]) -> list[list[int]]:
        # The chat template has written the special tokens already. verbose=False: lengths are limited by the caller.
        encoded = self.tokenizer(list(texts), add_special_tokens=False, verbose=False)["input_ids"]
        return [list(ids) for ids in encoded]

    def response(self, text: str) -> list[int]:
        return self.encode([self._opening + (text.strip() if self._strips else text)])[0] + self._end_ids

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


def _user(content: str) -> Message:
    return {"role": "user", "content": content}


def _assistant(content: str) -> Message:
    return {"role": "assistant", "content": content}
