"""Tokenised samples -> batches for a trainer or a loop, packed or padded.

    PreferenceCollator()(samples)                              what `amopo.trainer` takes: one row, shared tokens once
    PreferenceCollator(pad_token_id=0, packed=False)(samples)  input_ids, attention_mask, labels int64 [2KB, L],
                                                               amopo_sample_ids int64 [B]

Padded on the right; labels are the responses' ids at their own places, -100 elsewhere.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from amopo.packing.sample import TokenizedSample, sample_id_to_int64
from amopo.trainer.batches import PackCollator

IGNORE = -100


@dataclass(frozen=True)
class PreferenceCollator:
    """Batches of `TokenizedSample`s, or of mappings with its fields: packed, or padded on the right.

    pad_token_id: needed for padding. sharing: of packed rows, see `amopo.pack`. pad_to_multiple_of: of padded lengths.
    Padded rows stand sample by sample: chosen and rejected under the first objective, under the second, ...
    """

    pad_token_id: int | None = None
    packed: bool = True
    sharing: str = "pair"
    pad_to_multiple_of: int | None = None

    # The dataset's columns that are read; the mixin keeps them in a `datasets.Dataset`.
    columns = ("prompts", "chosen", "rejected", "id", "signs")

    def __post_init__(self) -> None:
        if not self.packed and self.pad_token_id is None:
            raise ValueError("PreferenceCollator(packed=False) needs pad_token_id, e.g. tokenizer.pad_token_id")
        if self.packed and self.pad_to_multiple_of is not None:
            raise ValueError("pad_to_multiple_of is for padded batches; packed rows have no padding")

    def __call__(self, items: Sequence[TokenizedSample | Mapping[str, Any]]) -> dict[str, Any]:
        samples = [_as_sample(item) for item in items]
        if not samples:
            raise ValueError("PreferenceCollator got no samples; give at least one")
        if self.packed:
            return PackCollator(sharing=self.sharing)([(sample, False) for sample in samples])
        return self._padded(samples)

    def _padded(self, samples: list[TokenizedSample]) -> dict[str, Any]:
        counts = {sample.num_objectives for sample in samples}
        if len(counts) > 1:
            raise ValueError(f"samples of one batch must have the same number of prompts, got {sorted(counts)}")
        sides = [(p, r) for s in samples for p in s.prompts for r in (s.chosen, s.rejected)]
        multiple = self.pad_to_multiple_of or 1
        length = -(-max(len(p) + len(r) for p, r in sides) // multiple) * multiple
        input_ids = torch.full((len(sides), length), self.pad_token_id, dtype=torch.int64)
        labels = torch.full_like(input_ids, IGNORE)
        attention_mask = torch.zeros_like(input_ids)
        for row, (prompt, response) in enumerate(sides):
            end = len(prompt) + len(response)
            input_ids[row, :end] = torch.tensor([*prompt, *response])
            labels[row, len(prompt) : end] = torch.tensor(response)
            attention_mask[row, :end] = 1
        ids = torch.tensor([sample_id_to_int64(sample.id) for sample in samples], dtype=torch.int64)
        batch = {"input_ids": input_ids, "attention_mask": attention_mask, "labels": labels, "amopo_sample_ids": ids}
        if any(sample.signs is not None for sample in samples):
            batch["amopo_signs"] = torch.tensor([sample.signs or (1,) * sample.num_objectives for sample in samples])
        return batch


def _as_sample(item: TokenizedSample | Mapping[str, Any]) -> TokenizedSample:
    if isinstance(item, TokenizedSample):
        return item
    if isinstance(item, Mapping) and {"prompts", "chosen", "rejected"} <= item.keys():
        if item.get("id") is None:
            raise ValueError(
                "a sample needs an id of its own, by which the weights' noise is keyed: add a column id (the row's "
                "number will do)"
            )
        return TokenizedSample(item["prompts"], item["chosen"], item["rejected"], item["id"], item.get("signs"))
    what = ", ".join(map(str, item)) if isinstance(item, Mapping) else type(item).__name__
    raise TypeError(f"PreferenceCollator takes TokenizedSample, or prompts, chosen, rejected (token ids), got {what}")
