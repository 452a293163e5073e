"""axolotl's trainer with AMoPO's loss.

`trainer_class(base, settings)` -> a subclass of `base` (axolotl's Trainer, or any) for batches of `AMoPOCollator`. The
model is patched before it is wrapped, so that its forward gives log-probs and no logits are made. Loss and metrics of
an evaluation are exact means over samples and ranks. Raises ValueError for several GPUs in one process.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor
from transformers import Trainer

from amopo.integrations.axolotl.collator import ORDER
from amopo.integrations.axolotl.settings import Settings
from amopo.integrations.llamafactory.forward import label_logps, patch_logps
from amopo.padded import sequence_rows
from amopo.preference_loss import FusedLoss, loss_from_tokens
from amopo.trainer.engines import check_parallelism, keep_output_dtype
from amopo.trainer.metrics import MetricSums
from amopo.trainer.micro_batches import ReducedMicroBatches

EVALUATION_STEP = 0


class _Size(NamedTuple):
    """Tokens of a padded batch, as `MetricSums` counts them."""

    num_tokens: int
    represented_tokens: int


def trainer_class(base: type[Trainer], settings: Settings) -> type[Trainer]:
    """A subclass of axolotl's (or any) Trainer with AMoPO's loss on padded batches."""

    class AMoPOAxolotlTrainer(ReducedMicroBatches, base):
        """The trainer with AMoPO's loss; `amopo` are its settings."""

        amopo = settings
        # transformers divides by the accumulation steps: the loss is a mean of this micro-batch.
        loss_is_scaled_for_ga = False

        def __init__(self, model: Any = None, *args: Any, **kwargs: Any) -> None:
            # Before accelerate, DeepSpeed or FSDP wrap what is patched.
            patch_logps(model)
            super().__init__(model, *args, **kwargs)
            if self.args.n_gpu > 1:
                raise ValueError("several GPUs in one process; start one process per GPU (axolotl train does so)")
            check_parallelism(self)
            keep_output_dtype(self)
            self.model_accepts_loss_kwargs = False
            self._sums = {"train": MetricSums(settings.objectives), "eval": MetricSums(settings.objectives)}

        def batch_loss(self, model: Any, batch: dict[str, Any], *, step: int) -> FusedLoss:
            """AMoPO's loss of one padded batch."""
            labels = batch["labels"]
            arguments = {n: v for n, v in batch.items() if n not in ("labels", "amopo_sample_ids")}
            logps, offsets = label_logps(model, arguments, labels)
            sequences = sequence_rows(labels.shape[0], len(settings.objectives), ORDER, None, logps.device)
            return loss_from_tokens(
                logps,
                offsets,
                sequences,
                tuple(sequences.shape[:2]),
                settings.loss(seed=self.args.seed, step=step, device=logps.device),
                batch["amopo_sample_ids"],
            )

        def compute_loss(
            self, model: Any, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
        ) -> Any:
            """The mean loss of a micro-batch's samples."""
            result = self.batch_loss(model, inputs, step=self.state.global_step)
            self._add("train", result, inputs)
            return (result.loss, result) if return_outputs else result.loss

        def prediction_step(
            self, model: Any, inputs: dict[str, Any], prediction_loss_only: bool, ignore_keys: list[str] | None = None
        ) -> tuple[Tensor, None, None]:
            """The loss alone: there are no logits."""
            inputs = self._prepare_inputs(inputs)
            with torch.no_grad(), self.compute_loss_context_manager():
                result = self.batch_loss(model, inputs, step=EVALUATION_STEP)
            self._add("eval", result, inputs)
            return result.loss.detach(), None, None

        def evaluation_loop(self, *args: Any, metric_key_prefix: str = "eval", **kwargs: Any) -> Any:
            """The host's loop; loss and metrics are means over samples, not over batches."""
            self._sums["eval"] = MetricSums(settings.objectives)
            output = super().evaluation_loop(*args, metric_key_prefix=metric_key_prefix, **kwargs)
            totals = self._sums["eval"].reduce(self._reduce)
            means = {"loss": totals.loss, **totals.means}
            output.metrics.update({f"{metric_key_prefix}_{name}": value for name, value in means.items()})
            return output

        def log(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
            """Log; at a training step with the metrics since the last one."""
            if "loss" in logs and not self._sums["train"].is_empty:
                logs.update(self._sums["train"].reduce(self._reduce).means)
            super().log(logs, *args, **kwargs)

        def _add(self, kind: str, result: FusedLoss, inputs: dict[str, Any]) -> None:
            count = inputs["input_ids"].numel()
            self._sums[kind].add(result, _Size(count, count))

        def _reduce(self, values: Tensor) -> Tensor:
            return self.accelerator.reduce(values, reduction="sum") if self.args.world_size > 1 else values

    return AMoPOAxolotlTrainer
