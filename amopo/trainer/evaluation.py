"""Evaluation: exact means over the samples of a dataset, through the forward that training uses.

Contract
--------
`Evaluation` is the part of `AMoPOTrainer` that evaluates. Every sample of every rank counts once, whatever batch it is
in; fillers count for nothing. The noise of the weights is that of step 0, so that two evaluations of the same weights
give the same numbers. The clock of the training stands still meanwhile.
"""

from __future__ import annotations

import contextlib
from typing import Any

import torch
from transformers import Trainer
from transformers.trainer_utils import EvalLoopOutput

from amopo.trainer.batches import PackedLoader
from amopo.trainer.metrics import MetricSums
from amopo.trainer.wrapping import is_sharded

EVALUATION_STEP = 0


class Evaluation(Trainer):
    """transformers' Trainer, with evaluation on packed batches."""

    def get_eval_dataloader(self, eval_dataset: Any = None) -> PackedLoader:
        """This rank's batches of a dataset, of a named entry of `self.eval_dataset`, or of the one that there is."""
        dataset = self.eval_dataset if eval_dataset is None else eval_dataset
        if isinstance(dataset, str):
            dataset = self.eval_dataset[dataset]
        if dataset is None:
            raise ValueError("evaluation needs an eval_dataset; pass it to AMoPOTrainer or to evaluate()")
        return self._loaders.evaluation(dataset)

    get_test_dataloader = get_eval_dataloader

    @property
    def evaluates_after_train_only(self) -> bool:
        """Whether the model waits for train() to shard it, so that `evaluate` would raise now."""
        if self.is_deepspeed_enabled:
            return self.deepspeed is None
        return self.is_fsdp_enabled and not is_sharded(self.model_wrapped)

    def evaluate(self, *args: Any, **kwargs: Any) -> dict[str, float]:
        """Loss and metrics over a dataset; see `Trainer.evaluate`."""
        self._clock.pause()
        try:
            return super().evaluate(*args, **kwargs)
        finally:
            self._clock.resume()

    def evaluation_loop(
        self,
        dataloader: PackedLoader,
        description: str,
        prediction_loss_only: bool | None = None,
        ignore_keys: list[str] | None = None,
        metric_key_prefix: str = "eval",
    ) -> EvalLoopOutput:
        """Exact means over the samples of all ranks, through the forward that training uses."""
        if self.evaluates_after_train_only:
            raise ValueError(
                "DeepSpeed and FSDP shard the model when train() begins, and it cannot be evaluated before; set "
                "eval_on_start=True for an evaluation ahead of the first step"
            )
        sharded = self.is_fsdp_enabled or self.is_deepspeed_enabled
        model = self.model_wrapped if sharded else self.model
        was_training = model.training
        model.eval()
        self.callback_handler.eval_dataloader = dataloader
        sums = MetricSums(self.args.objectives)
        # Outside of training the model has not been prepared for mixed precision.
        precision = contextlib.nullcontext() if self.is_in_train else self.accelerator.autocast()
        with torch.no_grad(), precision:
            for batch in dataloader:
                inputs = self._prepare_inputs(batch)
                result = self._run(model, inputs, step=EVALUATION_STEP)
                sums.add(result, inputs["amopo_layout"], num_samples=inputs["amopo_num_samples"])
                self.control = self.callback_handler.on_prediction_step(self.args, self.state, self.control)
        model.train(was_training)
        totals = sums.reduce(self._all_reduce)
        metrics = {"loss": totals.loss, **totals.means}
        metrics = {f"{metric_key_prefix}_{name}": value for name, value in metrics.items()}
        return EvalLoopOutput(predictions=None, label_ids=None, metrics=metrics, num_samples=totals.num_samples)
