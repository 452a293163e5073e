"""Pairs as token ids.

    tokenize_pairs(pairs, tokenizer, objectives=[...], scales={...}, template="rubric",
                   max_prompt_length=512, max_response_length=512) -> (list[TokenizedSample], TokenizationReport)
    PairTokenizer(tokenizer, ...).samples(pairs) -> iterator of TokenizedSample     the same, keeping none of them

Each pair gives one sample: K prompts f(x, d_k) through the tokenizer's chat template, assistant header included, and
two responses with their end-of-turn token. Prompt k shows one score for both responses, since they are compared under
one prompt: that of the response that objective k prefers (the chosen one, unless the pair has signs). Responses are
cut at the end, chosen and rejected to the same length; a cut response
has no end-of-turn token, since it does not end there. Prompts are cut as amopo/data/truncate.py says. Pairs that are
the same token for token after that are dropped. The report counts all of it. A prompt that cannot fit, or a tokenizer
without a chat template, raises ValueError.

`render_prompts` gives the same prompts as text for generation: the plain one, and each objective's template with its
best score.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from amopo.data.chat import ChatEncoder
from amopo.data.content import shown_scores
from amopo.data.scales import check_objectives, resolve_scales
from amopo.data.schema import DataError, Message, Pair, Scale
from amopo.data.seen import SeenNames
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
    """All samples at once, as a list; `amopo.data.cache` keeps them in a file instead."""
    run = PairTokenizer(
        tokenizer,
        objectives=objectives,
        scales=scales,
        template=template,
        max_prompt_length=max_prompt_length,
        max_response_length=max_response_length,
    )
    samples = list(run.samples(pairs))
    return samples, run.report()


class PairTokenizer:
    """Pairs as samples, one after the other, and a report of all so far."""

    def __init__(
        self,
        tokenizer: Any,
        *,
        objectives: Sequence[str],
        scales: Mapping[str, Scale],
        template: str | Template = "rubric",
        max_prompt_length: int = 512,
        max_response_length: int = 512,
    ) -> None:
        self.objectives, self.template = check_objectives(objectives), get_template(template)
        self.chat = ChatEncoder(tokenizer)
        self.scales = resolve_scales(self.objectives, given=scales)
        _check_length("max_prompt_length", max_prompt_length)
        _check_length("max_response_length", max_response_length)
        self.max_prompt_length, self.max_response_length = max_prompt_length, max_response_length
        self._seen = SeenNames()
        self._counts = dict.fromkeys(("pairs", "samples", "prompts_cut", "chosen_cut", "rejected_cut"), 0)
        self._longest = {"prompt": 0, "response": 0}

    def samples(self, pairs: Iterable[Pair]) -> Iterator[TokenizedSample]:
        for pair in pairs:
            sample = self._sample(pair)
            if sample is not None:
                yield sample

    def report(self) -> TokenizationReport:
        """What became of the pairs so far. Raises DataError if there are none to train on."""
        counts = self._counts
        report = TokenizationReport(
            **counts,
            dropped_identical=counts["pairs"] - counts["samples"],
            longest_prompt=self._longest["prompt"],
            longest_response=self._longest["response"],
            end_from_template=self.chat.from_template,
        )
        if not counts["samples"]:
            raise DataError(f"no pair is left to train on ({report}); give more pairs or raise max_response_length")
        return report

    def _sample(self, pair: Pair) -> TokenizedSample | None:
        """The sample of a pair; None if its responses are the same, token for token."""
        name, counts, chat = f"sample {pair.id!r}", self._counts, self.chat
        shown, signs = shown_scores(pair, self.objectives), self._signs(pair)
        if self._seen.add(str(pair.id)):
            raise DataError(f"{name}: another pair has this id; the weights' noise is keyed by it, so ids must differ")
        counts["pairs"] += 1
        try:
            chosen, rejected = chat.response(pair.chosen.text), chat.response(pair.rejected.text)
        except ValueError as error:
            raise DataError(f"{name}: {error}") from error
        short_chosen, short_rejected = chosen[: self.max_response_length], rejected[: self.max_response_length]
        if short_chosen == short_rejected:
            return None

        def encode(messages: Sequence[Message]) -> list[list[int]]:
            try:
                return chat.encode([chat.prompt_text(m) for m in _render(messages, self.template, shown, self.scales)])
            except ValueError as error:
                raise DataError(f"{name}: {error}") from error

        prompt = fit_prompt(pair.prompt, encode, limit=self.max_prompt_length, name=name)
        counts["samples"] += 1
        counts["prompts_cut"] += prompt.cut
        counts["chosen_cut"] += len(short_chosen) < len(chosen)
        counts["rejected_cut"] += len(short_rejected) < len(rejected)
        self._longest["prompt"] = max(self._longest["prompt"], *map(len, prompt.ids))
        self._longest["response"] = max(self._longest["response"], len(short_chosen), len(short_rejected))
        return TokenizedSample(tuple(prompt.ids), short_chosen, short_rejected, pair.id, signs)

    def _signs(self, pair: Pair) -> tuple[int, ...] | None:
        if pair.signs is None:
            return None
        if missing := [name for name in self.objectives if name not in pair.signs]:
            raise DataError(f"sample {pair.id!r}: the pair has no sign for objective {missing[0]!r}")
        signs = tuple(pair.signs[name] for name in self.objectives)
        if not any(signs):
            raise DataError(
                f"sample {pair.id!r}: its responses tie on {', '.join(self.objectives)}; make the pairs with these "
                "objectives, so that such a pair is left out"
            )
        return signs


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
