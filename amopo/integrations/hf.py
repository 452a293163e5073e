"""AMoPO in a `transformers.Trainer` that you have already: a mixin for the loss, a collator for the batches.

    class MyTrainer(AMoPOMixin, Trainer): ...

    MyTrainer(model, args, train_dataset=samples, data_collator=PreferenceCollator(pad_token_id=0),
              amopo=PreferenceLoss(objectives=["helpfulness", "brevity"]))

Contract
--------
The mixin replaces the loss, its normalisation, evaluation and the metrics; loaders, optimizer, checkpoints stay yours.
It patches the model (`amopo.patch`) and takes two kinds of batches:

- packed (`PreferenceCollator()`): `input_ids`, `position_ids` [1, T], `amopo_layout`; shared tokens once;
- padded (`PreferenceCollator(pad_token_id=..., packed=False)`, or your own): `input_ids`, `attention_mask` [2KB, L] and
  `labels` [2KB, L] with -100 on all but responses, or TRL's `completion_mask`. `PreferenceLoss.order` says how its rows
  stand. What else is in a padded batch goes to the model, but for names that begin with `amopo_` or `ref_`.

Either may bring `amopo_sample_ids` int64 [B], by which the weights' noise is keyed; a padded one `amopo_signs` [B, K].

The loss is the mean over the samples of the whole optimizer step, all ranks and accumulation steps, as in
`amopo.AMoPOTrainer`, which is the better choice where nothing binds you to a trainer of your own: it fills batches to a
token budget and resumes exactly. Metrics have the same names; means are exact, but for samples that accelerate repeats
to fill the last batch on several ranks, which count twice.

Under FSDP2 gradients are reduced in each micro-batch (`amopo.trainer.micro_batches`).

Unsupported (raises): nn.DataParallel, tensor, context and sequence parallelism, FSDP1, FSDP on CPUs (accelerate would
run DDP), `compute_metrics` and other functions of logits (there are none), label smoothing, a fused cross-entropy that
fights over the forward (`use_liger_kernel`).
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from amopo.fused_loss import loss_from_logps
from amopo.head_adapters import check_adapters
from amopo.integrations.collator import IGNORE, PreferenceCollator
from amopo.integrations.patch import Patch, patch
from amopo.preference_loss import FusedLoss
from amopo.trainer.checks import check_one_device
from amopo.trainer.engines import check_fsdp_version, check_parallelism, keep_output_dtype
from amopo.trainer.forward import causal_lm
from amopo.trainer.logps import check_logps_dtype
from amopo.trainer.metrics import MetricSums
from amopo.trainer.micro_batches import ReducedMicroBatches

__all__ = ["AMoPOMixin", "PreferenceCollator", "PreferenceLoss"]

EVALUATION_STEP = 0  # the noise of an evaluation is fixed, so that two of them agree
_OURS = ("amopo_", "ref_", "labels", "completion_mask")


@dataclass(frozen=True)
class PreferenceLoss:
    """The loss of `AMoPOMixin`; the arguments of `amopo.fused_loss` of the same names.

    objectives: names of the K objectives, in the order of each sample's prompts. order: of padded rows.
    """

    objectives: Sequence[str]
    beta: float = 0.8
    gamma: float = 0.0
    objective: str | Callable[..., Tensor] = "amopo"
    weights: Any = "gaussian"
    pooled: str = "union"
    seed: int = 0
    order: str = "sample_major"

    def __post_init__(self) -> None:
        if isinstance(self.objectives, str) or not self.objectives:
            raise ValueError(f"objectives must be a list of at least one name, got {self.objectives!r}")

    @property
    def num_objectives(self) -> int:
        """K."""
        return len(self.objectives)

    def options(self) -> dict[str, Any]:
        """What `loss_from_logps` takes."""
        names = ("beta", "gamma", "objective", "weights", "pooled", "seed")
        return {name: getattr(self, name) for name in names}


class _Size(NamedTuple):
    """Tokens of a batch, as `MetricSums` counts them."""

    num_tokens: int
    represented_tokens: int


class AMoPOMixin(ReducedMicroBatches):
    """Put it before the Trainer class: `class MyTrainer(AMoPOMixin, Trainer)`. Takes one more argument, `amopo`."""

    # The loss is normalised over the whole optimizer step already. transformers >= 5.19 reads this; older versions
    # look at model_accepts_loss_kwargs, set below.
    loss_is_scaled_for_ga = True
    # False: log-probs come from elsewhere (`token_logps` is overridden), and the model stays as it is.
    patches_model = True

    def __init__(self, *args: Any, amopo: PreferenceLoss, **kwargs: Any) -> None:
        if not isinstance(amopo, PreferenceLoss):
            raise TypeError(f"amopo must be a PreferenceLoss(objectives=[...]), got {type(amopo).__name__}")
        for name in ("compute_metrics", "preprocess_logits_for_metrics", "compute_loss_func"):
            if kwargs.get(name) is not None:
                raise ValueError(f"{name} has no meaning here: there are no logits; metrics are those of the loss")
        super().__init__(*args, **kwargs)
        self.amopo = amopo
        self.model_accepts_loss_kwargs = True
        self._sums = MetricSums(amopo.objectives)
        self._evaluation_sums: MetricSums | None = None
        self._check_arguments()
        keep_output_dtype(self)
        check_adapters(causal_lm(self.model), training=True)
        self.amopo_patch: Patch | None = patch(self.model) if self.patches_model else None

    def _check_arguments(self) -> None:
        check_one_device(self.args)
        check_parallelism(self)
        check_fsdp_version(self)
        if self.args.label_smoothing_factor:
            raise ValueError("label_smoothing_factor has no meaning here: the preference loss has no labels to smooth")
        if getattr(self.args, "use_liger_kernel", False):
            raise ValueError("use_liger_kernel would replace the model's forward, which is fused already; leave it out")

    # ---- batches ----

    def _set_signature_columns_if_needed(self) -> None:
        super()._set_signature_columns_if_needed()
        missing = [c for c in getattr(self.data_collator, "columns", ()) if c not in self._signature_columns]
        self._signature_columns = [*self._signature_columns, *missing]

    def _prepare_inputs(self, inputs: dict[str, Any]) -> dict[str, Any]:
        inputs = super()._prepare_inputs(inputs)
        if "amopo_layout" in inputs:
            inputs["amopo_layout"] = inputs["amopo_layout"].to(self.args.device, non_blocking=True)
        return inputs

    def num_samples(self, inputs: Mapping[str, Any]) -> int:
        """B of a batch."""
        if "amopo_layout" in inputs:
            return inputs["amopo_layout"].num_samples
        rows, per_sample = inputs["input_ids"].shape[0], 2 * self.amopo.num_objectives
        if rows % per_sample:
            raise ValueError(
                f"a batch of {rows} rows does not hold whole samples of {per_sample} rows (2 x "
                f"{self.amopo.num_objectives} objectives); is PreferenceLoss.objectives right, and the collator?"
            )
        return rows // per_sample

    def get_batch_samples(
        self, epoch_iterator: Iterator[dict[str, Any]], num_batches: int, device: torch.device
    ) -> tuple[list[dict[str, Any]], Tensor | int]:
        """The micro-batches of one optimizer step, and the number of samples in those of all ranks."""
        batches = list(itertools.islice(epoch_iterator, num_batches))
        count = sum(map(self.num_samples, batches))
        if self.args.world_size > 1:
            return batches, self._all_reduce(torch.tensor(count, device=device))
        return batches, count

    # ---- loss ----

    def token_logps(self, model: nn.Module, inputs: dict[str, Any], labels: Tensor) -> Tensor:
        """Log-probs `[rows, L]` or `[rows, L - 1]` of the labels of a padded batch; override to bring your own."""
        return check_logps_dtype(model(**inputs, labels=labels))

    def preference_loss(
        self, model: nn.Module, inputs: dict[str, Any], *, step: int, normalizer: Tensor | float | None = None
    ) -> FusedLoss:
        """The loss of one batch."""
        options = {
            **self.amopo.options(),
            "normalizer": normalizer,
            "sample_ids": inputs.get("amopo_sample_ids"),
            "step": step,
        }
        if "amopo_layout" in inputs:
            layout = inputs["amopo_layout"]
            logps = model(input_ids=inputs["input_ids"], position_ids=inputs["position_ids"], amopo_layout=layout)
            return loss_from_logps(
                check_logps_dtype(logps), layout, num_objectives=self.amopo.num_objectives, **options
            )
        self.num_samples(inputs)
        labels = self._labels(inputs)
        arguments = {name: value for name, value in inputs.items() if not name.startswith(_OURS)}
        return loss_from_logps(
            self.token_logps(model, arguments, labels),
            labels=labels,
            num_objectives=self.amopo.num_objectives,
            order=self.amopo.order,
            signs=inputs.get("amopo_signs"),
            **options,
        )

    def _labels(self, inputs: Mapping[str, Any]) -> Tensor:
        if "labels" in inputs:
            return inputs["labels"]
        if "completion_mask" in inputs:  # as TRL's collators mark responses
            return inputs["input_ids"].masked_fill(inputs["completion_mask"] == 0, IGNORE)
        raise ValueError(
            f"a batch needs amopo_layout, labels or completion_mask, got {', '.join(inputs)}; use PreferenceCollator"
        )

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Any:
        """This micro-batch's share of the step's loss; `num_items_in_batch` is the step's number of samples."""
        normalizer = None if num_items_in_batch is None else num_items_in_batch / self.args.world_size
        result = self.preference_loss(model, inputs, step=self.state.global_step, normalizer=normalizer)
        self._sums.add(result, _size(inputs))
        return (result.loss, result) if return_outputs else result.loss

    def _all_reduce(self, values: Tensor) -> Tensor:
        return self.accelerator.reduce(values, reduction="sum") if self.args.world_size > 1 else values

    # ---- logging and evaluation ----

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Log; at a training step with the metrics since the last one."""
        if "loss" in logs and not self._sums.is_empty:
            logs.update(self._sums.reduce(self._all_reduce).means)
        super().log(logs, start_time)

    def prediction_step(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        prediction_loss_only: bool,
        ignore_keys: list[str] | None = None,
    ) -> tuple[Tensor, None, None]:
        """Loss alone, through the forward that training uses."""
        inputs = self._prepare_inputs(inputs)
        with torch.no_grad(), self.compute_loss_context_manager():
            result = self.preference_loss(model, inputs, step=EVALUATION_STEP)
        if self._evaluation_sums is not None:
            self._evaluation_sums.add(result, _size(inputs))
        return result.loss.detach(), None, None

    def evaluation_loop(self, *args: Any, metric_key_prefix: str = "eval", **kwargs: Any) -> Any:
        """Trainer's loop; loss and metrics are means over samples, not over batches."""
        self._evaluation_sums = MetricSums(self.amopo.objectives)
        try:
            output = super().evaluation_loop(*args, metric_key_prefix=metric_key_prefix, **kwargs)
            totals = self._evaluation_sums.reduce(self._all_reduce)
        finally:
            self._evaluation_sums = None
        metrics = {"loss": totals.loss, **totals.means}
        output.metrics.update({f"{metric_key_prefix}_{name}": value for name, value in metrics.items()})
        return output


def _size(inputs: Mapping[str, Any]) -> Any:
    if "amopo_layout" in inputs:
        return inputs["amopo_layout"]
    return _Size(inputs["input_ids"].numel(), inputs["input_ids"].numel())
