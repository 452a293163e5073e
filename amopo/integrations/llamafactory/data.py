"""AMoPO's data in LLaMA-Factory: a dataset format, and samples of K prompts.

`formatting: amopo` in dataset_info.json (with `ranking: true`) reads rows of two forms:

    {"prompt": ..., "chosen": {"response": ..., "helpfulness": "4", ...}, "rejected": {...}}   the released AMoPO data
    {"prompt": ..., "responses": [{"text": ..., "scores": {"helpfulness": 4, ...}}, ...]}      grouped (docs/data.md)

`prompt` is a string or a list of messages, `id` optional. A response's text is called "response", "text" or "content";
its scores stand beside it or under "scores", as numbers or text. Of grouped rows the best and the worst response make
the pair, by the mean of their normalised scores; rows with a tie are dropped, and counted.

The aligned row is LLaMA-Factory's own (`_prompt`, `_response`, ...), so that the same data serves its other losses.
For AMoPO, each objective's template goes into the last user message; prompts are encoded by LLaMA-Factory's template
and cut to `cutoff_len` alike for all K (see amopo/data/truncate.py; the response is given the room that LLaMA-Factory
gives it). A row gives `prompt_ids` (K lists), `chosen_ids`, `rejected_ids`, `sample_id`, `objectives`.

Unsupported (raises): images, videos, audio, a score that is missing or off its scale, a prompt that cannot fit.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from llamafactory.data.converter import DatasetConverter
from llamafactory.data.processor import PairwiseDatasetProcessor
from llamafactory.data.processor.processor_utils import infer_seqlen
from llamafactory.extras import logging

from amopo.data.pairs import build_pairs
from amopo.data.prompts import parse_prompt, split_turns
from amopo.data.schema import DataError, Message, PreferenceRecord, Response, is_finite_number
from amopo.data.templates import get_template
from amopo.data.truncate import fit_prompt
from amopo.integrations.llamafactory.arguments import AMoPOSettings
from amopo.packing.sample import sample_id_to_int64

logger = logging.get_logger(__name__)
TEXTS = ("response", "text", "content")
MEDIA = ("images", "videos", "audios")


def settings_of(data_args: Any) -> AMoPOSettings | None:
    """AMoPO's settings, where a run of AMoPO put them; None for LLaMA-Factory's other losses."""
    return getattr(data_args, "amopo", None)


@dataclass
class AMoPODatasetConverter(DatasetConverter):
    """One row of AMoPO data in LLaMA-Factory's aligned form, with scores as JSON."""

    def __call__(self, example: dict[str, Any]) -> dict[str, Any]:
        attr = self.dataset_attr
        prompt = _column(example, attr.prompt, attr.messages, "prompt")
        name = _name(example, prompt)
        try:
            messages = list(parse_prompt(split_turns(_messages(prompt))))
            chosen, rejected = self._pair(example, name)
        except DataError as error:
            raise DataError(f"{name}: {error}") from None
        system = example[attr.system] if attr.system else ""
        if messages[0]["role"] == "system":
            system = messages.pop(0)["content"]
        # LLaMA-Factory drops what has no two responses.
        responses = [{"role": "assistant", "content": r.text} for r in (chosen, rejected) if r is not None]
        scores = {side: r.scores for side, r in (("chosen", chosen), ("rejected", rejected)) if r is not None}
        return {
            "_prompt": messages,
            "_response": responses,
            "_system": system or "",
            "_tools": example[attr.tools] if attr.tools else "",
            **{f"_{kind}": self._media(example, kind, name) for kind in MEDIA},
            "_amopo_scores": json.dumps(scores),
            "_amopo_id": name,
        }

    def _pair(self, example: Mapping[str, Any], name: str) -> tuple[Response | None, Response | None]:
        attr = self.dataset_attr
        grouped = example.get("responses")
        if grouped is None:
            sides = (_column(example, attr.chosen, "chosen"), _column(example, attr.rejected, "rejected"))
            return tuple(_response(value, side) for value, side in zip(sides, ("chosen", "rejected"), strict=True))
        if settings_of(self.data_args) is None:
            raise DataError('rows with "responses" are paired by their objectives; set stage: amopo')
        settings = settings_of(self.data_args)
        _check_scales(example.get("scales"), settings)
        responses = tuple(_response(value, f"response {number}") for number, value in enumerate(grouped, start=1))
        for number, response in enumerate(responses, start=1):
            _check_scores(response.scores, settings, f"response {number}")
        record = PreferenceRecord(name, ({"role": "user", "content": "-"},), responses)
        try:
            pairs, _ = build_pairs([record], objectives=settings.objectives, scales=settings.scales)
        except DataError:
            if len(responses) < 2:
                raise DataError(f"{len(responses)} response(s); at least 2 are needed to compare") from None
            return None, None  # a tie
        return pairs[0].chosen, pairs[0].rejected

    def _media(self, example: Mapping[str, Any], kind: str, name: str) -> None:
        column = getattr(self.dataset_attr, kind)
        if column and example.get(column):
            raise DataError(f"{name}: it has {kind}, but AMoPO data are text; leave {kind} out of the columns")


class AMoPODatasetProcessor(PairwiseDatasetProcessor):
    """LLaMA-Factory's pairs; in a run of AMoPO, samples of K prompts."""

    def preprocess_dataset(self, examples: dict[str, list[Any]]) -> dict[str, list[Any]]:
        """Token ids of a batch of aligned rows."""
        settings = settings_of(self.data_args)
        if settings is None:
            return super().preprocess_dataset(examples)
        columns = defaultdict(list)
        dropped = 0
        scores = examples.get("_amopo_scores") or [None] * len(examples["_prompt"])
        for row, encoded in enumerate(scores):
            if encoded is None:
                raise DataError("a row has no scores: AMoPO needs datasets with formatting: amopo in dataset_info.json")
            if len(examples["_response"][row]) < 2:
                dropped += 1
                continue
            sample = self._encode(settings, {key: examples[key][row] for key in examples}, json.loads(encoded))
            for key, value in sample.items():
                columns[key].append(value)
        if dropped:
            logger.warning_rank0(f"AMoPO: dropped {dropped} of {len(scores)} prompts whose responses tie.")
        return columns

    def print_data_example(self, example: dict[str, Any]) -> None:
        """The first objective's prompt and both responses, as text."""
        if settings_of(self.data_args) is None:
            super().print_data_example(example)
            return
        for name, prompt in zip(example["objectives"], example["prompt_ids"], strict=True):
            print(f"prompt for {name}:\n{self.tokenizer.decode(prompt, skip_special_tokens=False)}")
        for side in ("chosen", "rejected"):
            print(f"{side}:\n{self.tokenizer.decode(example[f'{side}_ids'], skip_special_tokens=False)}")

    def _encode(self, settings: AMoPOSettings, row: Mapping[str, Any], scores: Mapping[str, Any]) -> dict[str, Any]:
        name = row["_amopo_id"]
        _check_scores(scores["chosen"], settings, f"{name}: chosen")
        template = get_template(settings.template)
        system, tools = row["_system"] or None, row["_tools"] or None
        chosen, rejected = ({"role": r["role"], "content": r["content"]} for r in row["_response"][:2])

        def prompts(messages: Sequence[Message]) -> list[list[int]]:
            rendered = (
                template.render(messages, objective=d, score=float(scores["chosen"][d]), scale=settings.scales[d])
                for d in settings.objectives
            )
            # As plain text, not as a reference: a template may change the messages that it is given.
            return [
                self.template.encode_oneturn(self.tokenizer, [*m, dict(chosen)], system, tools)[0] for m in rendered
            ]

        messages = [{"role": m["role"], "content": m["content"]} for m in row["_prompt"]]
        responses = []
        for response in (chosen, rejected):
            ids = self.template.encode_oneturn(self.tokenizer, [*map(dict, messages), dict(response)], system, tools)[1]
            responses.append([*ids, self.tokenizer.eos_token_id] if self.template.efficient_eos else list(ids))
        longest = max(map(len, prompts(messages)))
        cutoff = self.data_args.cutoff_len
        _, room = infer_seqlen(longest, max(map(len, responses)), cutoff)
        chosen_ids, rejected_ids = (ids[:room] for ids in responses)
        if not chosen_ids or not rejected_ids:
            raise DataError(f"{name}: no room is left for a response in cutoff_len={cutoff}; raise cutoff_len")
        try:
            ids = fit_prompt(messages, prompts, limit=cutoff - max(len(chosen_ids), len(rejected_ids)), name=name).ids
        except ValueError as error:
            raise DataError(f"{error} (LLaMA-Factory calls it cutoff_len, which holds prompt and response)") from None
        return {
            "prompt_ids": ids,
            "chosen_ids": chosen_ids,
            "rejected_ids": rejected_ids,
            "sample_id": sample_id_to_int64(name),
            "objectives": list(settings.objectives),
        }


def _column(example: Mapping[str, Any], *names: str | None) -> Any:
    for name in names:
        if name and example.get(name) is not None:
            return example[name]
    raise DataError(
        f'a row has no column {names[-1]!r}; it has {", ".join(map(repr, example))}; name it under "columns"'
    )


def _name(example: Mapping[str, Any], prompt: Any) -> str:
    """The row's id, or the start of its prompt with a digest of the row: what errors and the weights' noise go by."""
    if example.get("id") is not None:
        return f"sample {example['id']!r}"
    digest = sample_id_to_int64(json.dumps(example, sort_keys=True, default=str))
    text = prompt if isinstance(prompt, str) else json.dumps(prompt)
    return f"sample {digest:016x} ({text.strip()[:40]!r})"


def _messages(prompt: Any) -> Any:
    if not isinstance(prompt, list):
        return prompt
    # `datasets` fills up what other rows have; "from"/"value" is the sharegpt form.
    names = {"from": "role", "value": "content", "human": "user", "gpt": "assistant"}
    turns = [{names.get(k, k): v for k, v in turn.items() if v is not None} for turn in prompt]
    return [{**turn, "role": names.get(turn.get("role"), turn.get("role"))} for turn in turns]


def _response(value: Any, what: str) -> Response:
    if not isinstance(value, Mapping):
        raise DataError(f"{what} must be an object with its text and its scores, but is {type(value).__name__}")
    key = next((key for key in TEXTS if isinstance(value.get(key), str)), None)
    if key is None or not value[key].strip():
        raise DataError(f"{what} has no text; call it {', '.join(map(repr, TEXTS))}")
    beside = value["scores"] if isinstance(value.get("scores"), Mapping) else value
    return Response(value[key], {name: number for name, v in beside.items() if (number := _number(v)) is not None})


def _number(value: Any) -> float | None:
    try:
        number = float(value) if isinstance(value, str) else value
    except ValueError:
        return None
    return float(number) if is_finite_number(number) else None


def _check_scales(declared: Any, settings: AMoPOSettings) -> None:
    """A row that says its scales must mean those that are used."""
    for name, (low, high) in (declared or {}).items():
        used = settings.scales.get(name)
        if used is not None and (used.low, used.high) != (low, high):
            raise DataError(f"its scale of {name!r} is {low:g} to {high:g}, but {used} is used; set amopo_scales")


def _check_scores(scores: Mapping[str, float], settings: AMoPOSettings, what: str) -> None:
    for objective in settings.objectives:
        if objective not in scores:
            known = ", ".join(scores) or "none"
            raise DataError(f"{what} has no score for objective {objective!r}; scores: {known}")
        if scores[objective] not in settings.scales[objective]:
            raise DataError(
                f"{what} scores {scores[objective]:g} on {objective!r}, outside its scale "
                f"{settings.scales[objective]}; correct it, or declare the scale in amopo_scales"
            )
