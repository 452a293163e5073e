"""Pairs as token ids.

    tokenize_pairs(pairs, tokenizer, objectives=[...], scales={...}, template="rubric",
                   max_prompt_length=512, max_response_length=512) -> (list[TokenizedSample], TokenizationReport)

Each pair gives one sample: K prompts f(x, d_k) through the tokenizer's chat template, assistant header included, and
two responses with their end-of-turn token. All K prompts show the score of the chosen response, for both responses:
they are compared under one prompt. Responses are cut at the end, chosen and rejected to the same length; a cut response
has no end-of-turn token, since it does not end there. Prompts are cut as amopo/data/truncate.py says. Pairs that are
the same token for token after that are dropped. The report counts all of it. A prompt that cannot fit, or a tokenizer
without a chat template, raises ValueError.

`render_prompts` gives the same prompts as text for generation: the plain one, and each objective's template with its
best score.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from amopo.data.chat import ChatEncoder
from amopo.data.scales import check_objectives, resolve_scales
from amopo.data.schema import DataError, Message, Pair, Scale
from amopo.data.templates import Template, get_template
from amopo.data.truncate import fit_prompt
from amopo.packing.sample import TokenizedSample

PLAIN = "plain"


@dataclass(frozen=True)
class TokenizationReport:
    pairs: int
    samples: int
    prompts_cut: int
    chosen_cut: int
    rejected_cut: int
    dropped_identical: int
    longest_prompt: int
    longest_response: int
    end_from_template: bool
    """False if the chat template does not say how a turn ends, so that responses end with the eos token."""

    def __str__(self) -> str:
        end = "" if self.end_from_template else "; the chat template does not mark the end of a turn, eos was used"
        return (
            f"{self.samples} samples from {self.pairs} pairs; cut: {self.prompts_cut} prompts, "
            f"{self.chosen_cut} chosen, {self.rejected_cut} rejected; "
            f"dropped {self.dropped_identical} identical after tokenisation; "
            f"longest prompt {self.longest_prompt}, longest response {self.longest_response} tokens{end}"
        )


def tokenize_pairs(
    pairs: Sequence[Pair],
    tokenizer: Any,
    *,
    objectives: Sequence[str],
    scales: Mapping[str, Scale],
    template: str | Template = "rubric",
    max_prompt_length: int = 512,
    max_response_length: int = 512,
) -> tuple[list[TokenizedSample], TokenizationReport]:
    objectives, template, chat = check_objectives(objectives), get_template(template), ChatEncoder(tokenizer)
    scales = resolve_scales(objectives, given=scales)
    _check_length("max_prompt_length", max_prompt_length)
    _check_length("max_response_length", max_response_length)
    samples: list[TokenizedSample] = []
    seen: set[str] = set()
    prompts_cut = chosen_cut = rejected_cut = 0
    for pair in pairs:
        if missing := [name for name in objectives if name not in pair.chosen.scores]:
            raise DataError(f"sample {pair.id!r}: the chosen response has no score for objective {missing[0]!r}")
        name = f"sample {pair.id!r}"
        if str(pair.id) in seen:
            raise DataError(f"{name}: another pair has this id; the weights' noise is keyed by it, so ids must differ")
        seen.add(str(pair.id))
        try:
            chosen, rejected = chat.response(pair.chosen.text), chat.response(pair.rejected.text)
        except ValueError as error:
            raise DataError(f"{name}: {error}") from error
        short_chosen, short_rejected = chosen[:max_response_length], rejected[:max_response_length]
        if short_chosen == short_rejected:
            continue

        shown = {objective: pair.chosen.scores[objective] for objective in objectives}

        def encode(messages: Sequence[Message], name: str = name, shown: dict[str, float] = shown) -> list[list[int]]:
            try:
                return chat.encode([chat.prompt_text(m) for m in _render(messages, template, shown, scales)])
            except ValueError as error:
                raise DataError(f"{name}: {error}") from error

        prompt = fit_prompt(pair.prompt, encode, limit=max_prompt_length, name=name)
        prompts_cut += prompt.cut
        chosen_cut += len(short_chosen) < len(chosen)
        rejected_cut += len(short_rejected) < len(rejected)
        samples.append(TokenizedSample(tuple(prompt.ids), short_chosen, short_rejected, pair.id))
    report = TokenizationReport(
        pairs=len(pairs),
        samples=len(samples),
        prompts_cut=prompts_cut,
        chosen_cut=chosen_cut,
        rejected_cut=rejected_cut,
        dropped_identical=len(pairs) - len(samples),
        longest_prompt=max((len(ids) for sample in samples for ids in sample.prompts), default=0),
        longest_response=max((len(ids) for sample in samples for ids in (sample.chosen, sample.rejected)), default=0),
        end_from_template=chat.from_template,
    )
    if not samples:
        raise DataError(f"no pair is left to train on ({report}); give more pairs or raise max_response_length")
    return samples, report


def render_prompts(
    messages: Sequence[Message],
    tokenizer: Any,
    *,
    objectives: Sequence[str],
    scales: Mapping[str, Scale],
    template: str | Template = "rubric",
    max_prompt_length: int | None = None,
) -> dict[str, str]:
    """Prompt texts to generate from: "plain" without any template, then each objective's with the top of its scale.

    With `max_prompt_length` the messages are cut once, alike for all of these texts.
    """
    objectives, template, chat = check_objectives(objectives), get_template(template), ChatEncoder(tokenizer)
    scales = resolve_scales(objectives, given=scales)
    if PLAIN in objectives:
        raise ValueError(f"an objective cannot be called {PLAIN!r} here: that is the prompt without a template")
    best = {name: scales[name].high for name in objectives}

    name = f"prompt {messages[-1]['content']!r:.60}"

    def texts(messages: Sequence[Message]) -> list[str]:
        try:
            return [chat.prompt_text(m) for m in (list(messages), *_render(messages, template, best, scales))]
        except ValueError as error:
            raise DataError(f"{name}: {error}") from error

    if max_prompt_length is not None:
        _check_length("max_prompt_length", max_prompt_length)
        messages = fit_prompt(messages, lambda m: chat.encode(texts(m)), limit=max_prompt_length, name=name).messages
    return dict(zip((PLAIN, *objectives), texts(messages), strict=True))


def _render(
    messages: Sequence[Message], template: Template, scores: Mapping[str, float], scales: Mapping[str, Scale]
) -> list[list[Message]]:
    return [
        template.render(messages, objective=name, score=score, scale=scales[name]) for name, score in scores.items()
    ]


def _check_length(name: str, value: object) -> None:
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise ValueError(f"{name} must be an integer of at least 1, but is {value!r}")
