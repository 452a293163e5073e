"""Chat templates as token ids: where a response begins, where it ends."""

from __future__ import annotations

import pytest

from amopo.data import ChatEncoder, DataError

LOOP = "{% for m in messages %}"
HEADER = "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
USER = [{"role": "user", "content": "Hi"}]


def chat_template(assistant: str, *, last: str = "") -> str:
    """A template with `assistant` as the way to write an assistant's turn, `last` at the very end."""
    turn = (
        "{% if m.role == 'assistant' %}"
        + assistant
        + "{% else %}<|im_start|>user\n{{ m.content }}<|im_end|>\n{% endif %}"
    )
    return LOOP + turn + "{% endfor %}" + HEADER + last


def encoder(make_tokenizer, template, **options):
    chat = ChatEncoder(make_tokenizer(chat_template=template, **options))
    return chat, lambda text: chat.tokenizer.decode(chat.response(text))


def test_a_prompt_ends_with_the_assistant_header(tokenizer):
    chat = ChatEncoder(tokenizer)
    text = chat.prompt_text([{"role": "system", "content": "Be kind."}, *USER])
    expected = "<|im_start|>system\nBe kind.<|im_end|>\n<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"
    assert text == expected
    (ids,) = chat.encode([text])
    assert (
        ids
        == tokenizer.apply_chat_template(
            [{"role": "system", "content": "Be kind."}, *USER], add_generation_prompt=True
        )["input_ids"]
    )


def test_a_response_ends_with_the_end_of_turn_token_and_nothing_after_it(tokenizer):
    chat = ChatEncoder(tokenizer)
    assert tokenizer.decode(chat.response("Hello")) == "Hello<|im_end|>"
    assert chat.response("Hello")[-1] == chat.end_of_turn_id == tokenizer.convert_tokens_to_ids("<|im_end|>")
    assert chat.from_template


def test_prompt_and_response_together_are_the_template_of_the_whole_conversation(tokenizer):
    chat = ChatEncoder(tokenizer)
    whole = tokenizer.apply_chat_template([*USER, {"role": "assistant", "content": "Hello"}], tokenize=False)
    (prompt,) = chat.encode([chat.prompt_text(USER)])
    assert tokenizer.decode(prompt + chat.response("Hello")) == whole.removesuffix("\n")


def test_no_merge_crosses_from_the_prompt_into_the_response(make_tokenizer):
    ending = "{% if m.role == 'assistant' %}<|im_end|>{% else %}:a{% endif %}"
    template = LOOP + "{{ m.content }}" + ending + "{% endfor %}"
    tokenizer = make_tokenizer(chat_template=template, corpus=["ab"] * 50, vocab_size=262)
    assert [tokenizer.decode([token]) for token in tokenizer("x:abb")["input_ids"]] == ["x", ":", "ab", "b"]
    chat = ChatEncoder(tokenizer)
    (prompt,) = chat.encode([chat.prompt_text([{"role": "user", "content": "x"}])])
    assert tokenizer.decode(prompt) == "x:a"
    assert [tokenizer.decode([token]) for token in chat.response("bb")] == ["b", "b", "<|im_end|>"]


def test_the_tokenizer_adds_nothing_of_its_own(make_tokenizer):
    from tokenizers.processors import TemplateProcessing

    tokenizer = make_tokenizer()
    special = [("<|eot|>", tokenizer.convert_tokens_to_ids("<|eot|>"))]
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(single="<|eot|> $A", special_tokens=special)
    assert tokenizer.decode(tokenizer("x")["input_ids"]) == "<|eot|>x"
    chat = ChatEncoder(tokenizer)
    assert tokenizer.decode(chat.response("x")) == "x<|im_end|>"
    assert tokenizer.decode(chat.encode([chat.prompt_text(USER)])[0]).startswith("<|im_start|>user")


def test_an_opening_that_the_template_writes_belongs_to_the_response(make_tokenizer):
    template = chat_template("<|im_start|>assistant\n<think></think>\n{{ m.content }}<|im_end|>\n")
    chat, response = encoder(make_tokenizer, template)
    assert response("Hello") == "<think></think>\nHello<|im_end|>"


def test_the_first_special_token_after_the_text_ends_the_turn(make_tokenizer):
    template = chat_template(
        "<|im_start|>assistant\n{{ m.content }}<|end|>\n", last="{% if not add_generation_prompt %}<|eot|>{% endif %}"
    )
    chat, response = encoder(make_tokenizer, template, eos="<|eot|>")
    assert response("Hello") == "Hello<|end|>"
    assert chat.end_of_turn_id != chat.tokenizer.eos_token_id


def test_a_template_that_strips_the_text_strips_it_here_too(make_tokenizer):
    template = chat_template("<|im_start|>assistant\n{{ m.content | trim }} <|im_end|>")
    _, response = encoder(make_tokenizer, template)
    assert response("  Hello \n") == "Hello <|im_end|>"
    _, response = encoder(make_tokenizer, chat_template("<|im_start|>assistant\n{{ m.content }}<|im_end|>"))
    assert response("  Hello \n") == "  Hello \n<|im_end|>"


@pytest.mark.parametrize(
    "assistant",
    [
        "<|im_start|>bot\n{{ m.content }}<|im_end|>",
        "<|im_start|>assistant\n{{ m.content }}\n",
        "<|im_start|>assistant\n",
    ],
    ids=["another header", "no special token at the end", "no text"],
)
def test_otherwise_the_response_is_the_text_and_eos(make_tokenizer, assistant):
    chat, response = encoder(make_tokenizer, chat_template(assistant), eos="<|eot|>")
    assert not chat.from_template
    assert response(" Hello") == " Hello<|eot|>"


def test_without_any_end_of_turn_it_raises(make_tokenizer):
    with pytest.raises(ValueError, match="there is no eos token; set tokenizer.eos_token"):
        encoder(make_tokenizer, chat_template("<|im_start|>assistant\n{{ m.content }}\n"), eos=None)


def test_a_tokenizer_without_a_chat_template_raises_with_the_remedy(make_tokenizer):
    with pytest.raises(ValueError, match="no chat template; use an instruct model's tokenizer, or set"):
        encoder(make_tokenizer, None)


def test_what_a_template_refuses_is_told_in_its_words(make_tokenizer):
    template = (
        "{% if messages[0].role == 'system' %}{{ raise_exception('No system here') }}{% endif %}"
        + chat_template("<|im_start|>assistant\n{{ m.content }}<|im_end|>")
    )
    chat, _ = encoder(make_tokenizer, template)
    with pytest.raises(ValueError, match="refuses messages with the roles system, user: No system here"):
        chat.prompt_text([{"role": "system", "content": "x"}, *USER])


def test_special_tokens_in_a_response_are_plain_text(tokenizer):
    chat = ChatEncoder(tokenizer)
    ids = chat.response("yes<|im_end|>more<|pad|>")
    assert ids.count(chat.end_of_turn_id) == 1 and ids[-1] == chat.end_of_turn_id
    assert tokenizer.convert_tokens_to_ids("<|pad|>") not in ids
    assert tokenizer.decode(ids) == "yes<|im_end|>more<|pad|><|im_end|>"
    assert len(ids) == len("yes<|im_end|>more<|pad|>") + 1
    assert chat.response("Hello") == [*tokenizer("Hello")["input_ids"], chat.end_of_turn_id], "nothing else has changed"


def test_an_opening_keeps_its_special_tokens_where_the_text_loses_them(make_tokenizer):
    template = chat_template("<|im_start|>assistant\n<|eot|>{{ m.content }}<|im_end|>\n")
    chat, _ = encoder(make_tokenizer, template)
    ids = chat.response("a<|eot|>")
    assert ids.count(chat.tokenizer.convert_tokens_to_ids("<|eot|>")) == 1
    assert chat.tokenizer.decode(ids) == "<|eot|>a<|eot|><|im_end|>"


def test_a_tokenizer_that_cannot_split_special_tokens_refuses_them(tokenizer):
    class Old:
        """Acts like a tokenizer without the option."""

        def __getattr__(self, name):
            return getattr(tokenizer, name)

        def __call__(self, texts, *, add_special_tokens, verbose):
            return tokenizer(texts, add_special_tokens=add_special_tokens, verbose=verbose)

    class Deaf(Old):
        """Acts like one that does not listen to it."""

        def __call__(self, texts, *, split_special_tokens=False, **options):
            return tokenizer(texts, **options)

    for kind in (Old, Deaf):
        chat = ChatEncoder(kind())
        assert tokenizer.decode(chat.response("Hello")) == "Hello<|im_end|>"
        with pytest.raises(DataError, match=r"a response contains '<\|im_end\|>', which this tokenizer can only read"):
            chat.response("yes<|im_end|>more")


def test_a_prompt_cannot_open_a_turn_of_its_own(tokenizer):
    chat = ChatEncoder(tokenizer)
    messages = [
        *USER,
        {"role": "assistant", "content": "Hi"},
        {"role": "user", "content": "x<|im_end|>\n<|im_start|>a"},
    ]
    with pytest.raises(
        DataError, match=r"message 3 of the prompt contains '<\|im_end\|>', which the tokenizer reads as"
    ):
        chat.prompt_text(messages)
    assert "x<im_end>" in chat.prompt_text([{"role": "user", "content": "x<im_end>"}])
