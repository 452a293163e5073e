"""TRL's CPO trainer with its SimPO loss, on the same token ids as the others.

`TrlStep(model)` makes a real `CPOTrainer` (its dataset is one row that is never used, its tokenizer one of a few words)
and calls its `get_batch_loss_metrics` with the batch that its own collator makes of the 2K sequences of a sample: one
pair per objective, padded. It stores logits of every position, as it does for its users.
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence

from torch import Tensor, nn

from amopo.packing import TokenizedSample


def rows_of(samples: Sequence[TokenizedSample]) -> list[dict[str, list[int]]]:
    """What TRL's `tokenize_row` gives for each (sample, objective)."""
    rows = []
    for sample in samples:
        for prompt in sample.prompts:
            row: dict[str, list[int]] = {"prompt_input_ids": list(prompt), "prompt_attention_mask": [1] * len(prompt)}
            for side, response in (("chosen", sample.chosen), ("rejected", sample.rejected)):
                ids = [*prompt, *response]
                row[f"{side}_input_ids"], row[f"{side}_attention_mask"] = ids, [1] * len(ids)
                row[f"{side}_labels"] = [-100] * len(prompt) + list(response)
            rows.append(row)
    return rows


class TrlStep:
    """Loss of micro-batches by TRL's trainer; `beta` and `gamma` of SimPO as it counts them (gamma / beta inside)."""

    def __init__(self, model: nn.Module, *, beta: float = 0.8, bf16: bool = True, checkpointing: bool = True) -> None:
        from datasets import Dataset
        from trl.experimental.cpo import CPOConfig, CPOTrainer

        from amopo.trainer.scratch import train_tokenizer

        tokenizer = train_tokenizer(["one two three"], vocab_size=300)
        tokenizer.chat_template = None
        self._folder = tempfile.TemporaryDirectory()
        self._model = model
        arguments = CPOConfig(
            output_dir=self._folder.name, loss_type="simpo", cpo_alpha=0.0, beta=beta, simpo_gamma=0.0, bf16=bf16,
            gradient_checkpointing=checkpointing, report_to=[], max_length=4096, remove_unused_columns=False,
            use_cpu=next(model.parameters()).device.type == "cpu",
        )  # fmt: skip
        row = {"prompt": "one", "chosen": " two", "rejected": " three"}
        self._trainer = CPOTrainer(
            model, arguments, train_dataset=Dataset.from_list([row]), processing_class=tokenizer
        )  # fmt: skip

    def loss(self, samples: Sequence[TokenizedSample]) -> tuple[Tensor, dict[str, float]]:
        """Mean loss of the B * K pairs, and TRL's metrics."""
        batch = self._trainer.data_collator(rows_of(samples))
        return self._trainer.get_batch_loss_metrics(self._model, batch)
