"""Padded batches of the plugin's samples.

`AMoPOCollator(tokenizer, num_objectives=K)(rows)` -> `input_ids`, `attention_mask`, `labels` `[2KB, length]`, in the
order `ORDER` of rows (see `amopo.padded`), and `amopo_sample_ids` int64 `[B]`, the keys of the weights' noise.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from amopo.integrations.llamafactory.forward import IGNORE_INDEX

ORDER = "sample_major"


class AMoPOCollator:
    """Padded batches `[2KB, length]`, sample by sample: chosen and rejected under each objective in turn."""

    def __init__(
        self,
        tokenizer: Any,
        *,
        num_objectives: int,
        pad_to_multiple_of: int | None = None,
        padding: Any = True,
        return_tensors: str = "pt",
    ) -> None:
        if padding not in (True, "longest") or return_tensors != "pt":
            raise ValueError(
                "AMoPOCollator pads tensors of torch to the longest sequence of a batch, not "
                f"padding={padding!r}, return_tensors={return_tensors!r}"
            )
        self.pad_token_id = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id
        if self.pad_token_id is None:
            raise ValueError("the tokenizer has neither a pad nor an eos token; set special_tokens: {pad_token: ...}")
        self.num_objectives = num_objectives
        self.multiple = pad_to_multiple_of or 1

    def __call__(self, samples: list[dict[str, Any]]) -> dict[str, Tensor]:
        """One batch of rows as `tokenized_rows` makes them."""
        for sample in samples:
            if len(sample["prompts"]) != self.num_objectives:
                raise ValueError(
                    f"a sample has {len(sample['prompts'])} prompts, but there are {self.num_objectives} objectives; "
                    "were the data prepared with others?"
                )
        pairs = [(p, r) for s in samples for p in s["prompts"] for r in (s["chosen"], s["rejected"])]
        length = -(-max(len(p) + len(r) for p, r in pairs) // self.multiple) * self.multiple
        input_ids = torch.full((len(pairs), length), self.pad_token_id)
        attention_mask, labels = torch.zeros_like(input_ids), torch.full_like(input_ids, IGNORE_INDEX)
        for row, (prompt, response) in enumerate(pairs):
            start, end = len(prompt), len(prompt) + len(response)
            input_ids[row, :end] = torch.tensor([*prompt, *response])
            labels[row, start:end] = torch.tensor(response)
            attention_mask[row, :end] = 1
        ids = torch.tensor([sample["sample_id"] for sample in samples], dtype=torch.int64)
        return {
            "input_ids": input_ids,
            "attention_mask": attention_mask,
            "labels": labels,
            "amopo_sample_ids": ids,
        }
