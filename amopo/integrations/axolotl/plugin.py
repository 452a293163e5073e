"""What axolotl's builder asks a plugin for: keys, trainer, collator, arguments and data sets.

The plugin is loaded as `amopo.integrations.axolotl.AMoPOPlugin`, and its keys as `AMoPOArgs` from the same place.
"""

from __future__ import annotations

import math
from typing import Any

from axolotl.integrations.base import BasePlugin
from transformers import Trainer

from amopo.integrations.axolotl.collator import AMoPOCollator
from amopo.integrations.axolotl.data import tokenized_rows
from amopo.integrations.axolotl.settings import AMoPOArgs, given, settings_of
from amopo.integrations.axolotl.trainer import trainer_class

PACKAGE = __name__.rpartition(".")[0]


class AMoPOPlugin(BasePlugin):
    """`plugins: [amopo.integrations.axolotl.AMoPOPlugin]`."""

    def get_input_args(self) -> str:
        """Where axolotl finds the model of the plugin's keys."""
        return f"{PACKAGE}.{AMoPOArgs.__name__}"

    def get_trainer_cls(self, cfg: Any) -> type[Trainer]:
        """axolotl's trainer with AMoPO's loss."""
        from axolotl.core.trainers.base import AxolotlTrainer

        return trainer_class(AxolotlTrainer, settings_of(cfg))

    def get_collator_cls_and_kwargs(self, cfg: Any, is_eval: bool = False) -> tuple[type, dict[str, Any]]:
        """The collator and what it needs beside the tokenizer."""
        return AMoPOCollator, {"num_objectives": len(settings_of(cfg).objectives)}

    def get_training_args(self, cfg: Any) -> dict[str, Any]:
        """Columns that the collator reads must stay in the dataset."""
        return {"remove_unused_columns": False}

    def load_datasets(self, cfg: Any, preprocess: bool = False) -> Any:
        """Samples of `datasets` and `test_datasets`, tokenised, as axolotl's `TrainDatasetMeta`."""
        from axolotl.common.datasets import TrainDatasetMeta
        from axolotl.loaders import load_tokenizer

        train, evaluation = tokenized_rows(cfg, load_tokenizer(cfg))
        # The number of steps is what warm-up and schedule are built from.
        steps = math.ceil(len(train) * given(cfg, "num_epochs", 1.0) / given(cfg, "batch_size", 1))
        steps = min(steps, cfg.get("max_steps") or steps)
        return TrainDatasetMeta(
            train_dataset=_dataset(train),
            eval_dataset=_dataset(evaluation) if evaluation else None,
            total_num_steps=steps,
        )


def _dataset(rows: list[dict[str, Any]]) -> Any:
    from datasets import Dataset

    return Dataset.from_list(rows)
