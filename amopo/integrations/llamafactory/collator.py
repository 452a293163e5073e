"""Batches of AMoPO samples, padded by LLaMA-Factory.

A batch of B samples is `input_ids`, `attention_mask`, `labels` `[2KB, length]`, sample by sample: chosen and rejected
under the first objective, under the second, ...; and `amopo_sample_ids` int64 `[B]`, by which the weights' noise is
keyed. Labels are -100 on prompts and padding.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from llamafactory.data.collator import MultiModalDataCollatorForSeq2Seq

from amopo.integrations.llamafactory.arguments import AMoPOSettings
from amopo.integrations.llamafactory.forward import IGNORE_INDEX

ORDER = "sample_major"


@dataclass
class AMoPODataCollator(MultiModalDataCollatorForSeq2Seq):
    """LLaMA-Factory's collator, given 2K sequences per sample."""

    amopo: AMoPOSettings | None = None

    def __call__(self, features: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
        """Pad a list of samples as `AMoPODatasetProcessor` makes them."""
        sequences = [sequence for feature in features for sequence in self._sequences(feature)]
        batch = super().__call__(sequences)
        batch["amopo_sample_ids"] = torch.tensor([feature["sample_id"] for feature in features], dtype=torch.int64)
        return batch

    def _sequences(self, feature: dict[str, Any]) -> list[dict[str, Any]]:
        if "prompt_ids" not in feature:
            raise ValueError(
                "a sample has no prompt_ids: the tokenized data were not made for AMoPO; use another tokenized_path"
            )
        if tuple(feature["objectives"]) != self.amopo.objectives:
            raise ValueError(
                f"the tokenized data have the objectives {', '.join(feature['objectives'])}, but amopo_objectives are "
                f"{', '.join(self.amopo.objectives)}; use another tokenized_path"
            )
        return [
            {
                "input_ids": [*prompt, *response],
                "attention_mask": [1] * (len(prompt) + len(response)),
                "labels": [IGNORE_INDEX] * len(prompt) + list(response),
            }
            for prompt in feature["prompt_ids"]
            for response in (feature["chosen_ids"], feature["rejected_ids"])
        ]
