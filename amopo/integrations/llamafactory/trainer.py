"""AMoPO as a loss of LLaMA-Factory's DPO stage.

The trainer is LLaMA-Factory's own, with its optimizers, schedules, callbacks and checkpoints; the batch loss is
AMoPO's, a mean over the micro-batch's samples, averaged over accumulation steps and ranks as LLaMA-Factory does. The
weights' noise is keyed by (seed, optimizer step, sample, objective); in evaluations the step is 0. Metrics have TRL's
names, as the mean over objectives and per objective, and stay on the device until they are logged.
"""

from __future__ import annotations

from typing import Any, Literal

from torch import Tensor

from amopo.integrations.llamafactory.arguments import AMoPOSettings, amopo_settings
from amopo.integrations.llamafactory.collator import ORDER
from amopo.integrations.llamafactory.dpo import FusedDPOTrainer
from amopo.integrations.llamafactory.forward import label_logps
from amopo.padded import sequence_rows
from amopo.preference_loss import FusedLoss, loss_from_tokens

EVALUATION_STEP = 0
_MEANS_OVER_OBJECTIVES = ("rewards/", "logps/")
_OURS = ("labels", "amopo_sample_ids")
# The spread over samples cannot be averaged over batches.
_NOT_A_MEAN = "amopo/alpha_std"


class AMoPODPOTrainer(FusedDPOTrainer):
    """LLaMA-Factory's preference trainer with AMoPO's loss."""

    def __init__(self, model: Any, ref_model: Any, finetuning_args: Any, *args: Any, **kwargs: Any) -> None:
        self.amopo: AMoPOSettings = amopo_settings(finetuning_args)
        super().__init__(model, ref_model, finetuning_args, *args, **kwargs)

    def batch_loss(self, model: Any, batch: dict[str, Any], *, step: int) -> FusedLoss:
        """AMoPO's loss of one padded batch."""
        labels, amopo = batch["labels"], self.amopo
        arguments = {name: value for name, value in batch.items() if name not in _OURS}
        logps, offsets = label_logps(model, arguments, labels)
        sequences = sequence_rows(labels.shape[0], amopo.num_objectives, ORDER, None, logps.device)
        return loss_from_tokens(
            logps,
            offsets,
            sequences,
            (sequences.shape[0], amopo.num_objectives),
            amopo.loss(seed=self.args.seed, step=step, device=logps.device),
            batch["amopo_sample_ids"],
        )

    def get_batch_loss_metrics(
        self, model: Any, batch: dict[str, Any], train_eval: Literal["train", "eval"] = "train"
    ) -> tuple[Tensor, dict[str, Any]]:
        """Loss and metrics of one micro-batch."""
        is_eval = train_eval == "eval"
        result = self.batch_loss(model, batch, step=EVALUATION_STEP if is_eval else self.state.global_step)
        prefix = "eval_" if is_eval else ""
        return result.loss, {f"{prefix}{name}": value for name, value in self._named(result.metrics).items()}

    def _named(self, metrics: dict[str, Tensor]) -> dict[str, Tensor]:
        named: dict[str, Tensor] = {}
        for name, value in metrics.items():
            if name == _NOT_A_MEAN:
                continue
            if value.dim() == 0:
                named[name] = value
                continue
            if name.startswith(_MEANS_OVER_OBJECTIVES):
                named[name] = value.mean()
            named.update({f"{name}/{d}": v for d, v in zip(self.amopo.objectives, value.unbind(), strict=True)})
        return named
