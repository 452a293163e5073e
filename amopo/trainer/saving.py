"""What a run leaves in a folder: weights, tokenizer, and the record of the run.

Contract
--------
`Saving` is the part of `AMoPOTrainer` that saves. `save_model(folder)` writes whole weights, whatever the ranks hold of
them, and beside them `amopo_run.json`: `run_record()`, the settings, data, model and versions that decide the result
(`amopo.trainer.resume` compares them). While a checkpoint is written the clock of the training stands still;
`SavingIsNotTraining` lets it go on.
"""

from __future__ import annotations

from typing import Any

from transformers import Trainer, TrainerCallback

from amopo.trainer.forward import causal_lm
from amopo.trainer.identity import class_name, model_identity
from amopo.trainer.metrics import Stopwatch
from amopo.trainer.resume import run_record, write_run_record


class Saving(Trainer):
    """transformers' Trainer, with whole weights and a record of the run."""

    def run_record(self) -> dict[str, Any]:
        """Settings, data, model and versions that decide this run's result."""
        if self._identity is None:
            # Once: what training itself changes in the configuration, or shards, is no part of it.
            self._identity = model_identity(self.model)
        return run_record(
            self.args,
            data_fingerprint=self._train_table.fingerprint,
            num_samples=len(self._train_table.lengths),
            model_class=class_name(causal_lm(self.model)),
            model=self._identity,
            planned_ranks=self._loaders.planned_ranks,
        )

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """Save weights, configuration, tokenizer and `amopo_run.json`."""
        if _internal_call:
            self._clock.pause()
        super().save_model(output_dir, _internal_call)
        if not _internal_call and self._writes_shards:
            # transformers leaves the weights to the checkpoints then, and would save none here
            weights = self.accelerator.get_state_dict(self.model)
            if self.args.should_save:
                self._save(output_dir or self.args.output_dir, state_dict=weights)
        if self.args.should_save and self._train_table is not None:
            write_run_record(output_dir or self.args.output_dir, self.run_record())

    @property
    def _writes_shards(self) -> bool:
        """Whether FSDP keeps checkpoints as one file of shards per rank."""
        return self.is_fsdp_enabled and "FULL" not in str(self.accelerator.state.fsdp_plugin.state_dict_type)


class SavingIsNotTraining(TrainerCallback):
    """Lets the clock go on after a checkpoint was written."""

    def __init__(self, clock: Stopwatch) -> None:
        self.clock = clock

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.clock.resume()
