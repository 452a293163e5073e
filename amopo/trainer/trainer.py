"""The trainer: transformers' loop around packed preference batches.

Contract
--------
`AMoPOTrainer(model, args, train_dataset=..., eval_dataset=...)` trains any Hugging Face causal LM (or a PEFT model of
one) on lists of `TokenizedSample`. It is transformers' `Trainer` with these parts replaced:

- **Loss.** The mean over the samples of the whole optimizer step: all micro-batches and all ranks. Micro-batches hold
  unequal numbers of samples, so a mean of means would be biased. A micro-batch returns
  `loss_sum * world_size / samples of the step`; accumulation adds, DDP averages over ranks.
- **Noise** of the weights: keyed by (noise_seed, optimizer step, sample id, objective). Batching does not matter.
- **Batches**: each rank's own, filled to `tokens_per_batch` (see `amopo.packing.batching`).
- **Evaluation**: the same forward and loss, exact means over samples (see `amopo.trainer.evaluation`).
- **Metrics**: read from the device at logging steps only, and kept in `amopo_log.jsonl` (see
  `amopo.trainer.step_logs`, `amopo.trainer.metrics`).
- **Out of memory**: the error says what the plan makes of it, and which settings would fit; `auto_budget` lowers the
  token budget before the first step (see `amopo.trainer.out_of_memory`, `amopo.trainer.token_budget`).
- **Checkpoints**: resuming continues the run exactly; other settings or data raise (see `amopo.trainer.saving`,
  `amopo.trainer.resume`).

Nothing is sent anywhere unless `report_to` names a tracker.

Unsupported (raises): nn.DataParallel, tensor, context and sequence parallelism, `model_init`, custom collators and
metric functions (there are no logits to compute them from).
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from transformers import TrainerCallback

from amopo.fused_loss import loss_from_logps
from amopo.memory.checkpointing import enable_checkpointing
from amopo.memory.exhausted import is_out_of_memory
from amopo.packing import attention
from amopo.packing.layout import TreeLayout
from amopo.packing.sample import TokenizedSample
from amopo.preference_loss import FusedLoss
from amopo.trainer.batches import PackCollator, PackedLoader
from amopo.trainer.checkpoint_loading import CheckpointLoading
from amopo.trainer.checks import check_setup, embedding_rows, position_limit
from amopo.trainer.config import FIXED, AMoPOConfig
from amopo.trainer.engines import check_fsdp_version, check_parallelism, keep_output_dtype
from amopo.trainer.evaluation import Evaluation
from amopo.trainer.forward import causal_lm, patch_forward
from amopo.trainer.loading import Loaders
from amopo.trainer.logps import check_logps_dtype
from amopo.trainer.metrics import MetricSums, Stopwatch
from amopo.trainer.micro_batches import ReducedMicroBatches
from amopo.trainer.out_of_memory import explained
from amopo.trainer.ranks import ranks_to_plan_for
from amopo.trainer.resume import (
    check_same_run,
    check_weight_names,
    latest_checkpoint,
    read_settings,
    write_run_record,
)
from amopo.trainer.run_log import RunLog
from amopo.trainer.samples import SampleTable
from amopo.trainer.saving import Saving, SavingIsNotTraining
from amopo.trainer.self_check import check_first_batch
from amopo.trainer.step_logs import StepLogs
from amopo.trainer.token_budget import fit_budget, keep_budget

LOGITS_DTYPES = {None: None, "float32": torch.float32, "input": "input"}


class AMoPOTrainer(ReducedMicroBatches, Evaluation, StepLogs, CheckpointLoading, Saving):
    """Adaptive multi-objective preference optimisation of a causal LM."""

    # The loss is normalised over the whole optimizer step already. transformers >= 5.19 reads this; older versions
    # look at model_accepts_loss_kwargs, set below.
    loss_is_scaled_for_ga = True

    def __init__(
        self,
        model: nn.Module,
        args: AMoPOConfig,
        *,
        train_dataset: Sequence[TokenizedSample] | None = None,
        eval_dataset: Sequence[TokenizedSample] | dict[str, Sequence[TokenizedSample]] | None = None,
        processing_class: Any = None,
        callbacks: list[TrainerCallback] | None = None,
        optimizers: tuple[torch.optim.Optimizer | None, torch.optim.lr_scheduler.LambdaLR | None] = (None, None),
    ) -> None:
        check_setup(model, args)
        self._loaders = Loaders(args, embedding_rows(model), position_limit(model))
        self._sums = MetricSums(args.objectives)
        self._clock = Stopwatch()
        self._train_table: SampleTable | None = None
        self._identity: dict[str, Any] | None = None
        self.running_layout: TreeLayout | None = None  # of the last row, for what is said of an error
        if train_dataset is not None:
            self._train_table = self._loaders.add(train_dataset, "train_dataset")
        named = eval_dataset if isinstance(eval_dataset, dict) else {None: eval_dataset}
        for name, dataset in named.items():
            if dataset is not None:
                self._loaders.add(dataset, "eval_dataset" if name is None else f"eval_dataset[{name!r}]")
        super().__init__(
            model=model,
            args=args,
            data_collator=PackCollator(sharing=args.sharing),
            train_dataset=train_dataset,
            eval_dataset=eval_dataset,
            processing_class=processing_class,
            callbacks=[*(callbacks or []), SavingIsNotTraining(self._clock), RunLog()],
            optimizers=optimizers,
        )
        self.model_accepts_loss_kwargs = True
        fixed = args.weights == FIXED
        self._weights = torch.tensor(args.objective_weights, device=args.device) if fixed else args.weights
        check_parallelism(self)
        keep_output_dtype(self)
        check_fsdp_version(self)
        if args.gradient_checkpointing and (args.gradient_checkpointing_kwargs or {}).get("use_reentrant"):
            # With frozen embeddings no input of a checkpointed layer would need a gradient, and none would flow.
            self.model.enable_input_require_grads()
        self.packed_forward = patch_forward(
            model, logits_dtype=LOGITS_DTYPES[args.logits_dtype], budget=args.head_budget
        )
        if args.sharing != "none" and not attention.is_installed(causal_lm(model)):
            self.packed_forward.remove()
            raise ValueError(
                f"{type(causal_lm(model)).__name__} does not take its attention from transformers' interface, so its "
                "sequences cannot share tokens; set sharing='none'"
            )

    # ---- data ----

    def get_train_dataloader(self) -> PackedLoader:
        """This rank's batches. Not prepared by accelerate, which would shard them a second time."""
        if self._train_table is None:
            raise ValueError("training needs a train_dataset; pass it to AMoPOTrainer")
        return self._loaders.training(self._train_table)

    def get_total_train_batch_size(self, args: AMoPOConfig) -> int:
        """Samples of an optimizer step, on average: batches are counted in tokens."""
        steps = -(-len(self.get_train_dataloader()) // args.gradient_accumulation_steps)
        return max(1, round(len(self._train_table.lengths) / steps))

    def _prepare_inputs(self, inputs: dict[str, Any]) -> dict[str, Any]:
        inputs = super()._prepare_inputs(inputs)
        inputs["amopo_layout"] = inputs["amopo_layout"].to(self.args.device, non_blocking=True)
        return inputs

    # ---- loss ----

    def get_batch_samples(
        self, epoch_iterator: Iterator[dict[str, Any]], num_batches: int, device: torch.device
    ) -> tuple[list[dict[str, Any]], Tensor | int]:
        """The micro-batches of one optimizer step, and the number of samples in those of all ranks."""
        batches = list(itertools.islice(epoch_iterator, num_batches))
        count = sum(batch["amopo_num_samples"] for batch in batches)
        if self.args.world_size > 1:
            return batches, self._all_reduce(torch.tensor(count, device=device))
        return batches, count

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Any:
        """This micro-batch's share of the step's loss; `num_items_in_batch` is the step's number of samples."""
        self._clock.start()
        self.running_layout = inputs["amopo_layout"]
        normalizer = None if num_items_in_batch is None else num_items_in_batch / self.args.world_size
        result = self._run(model, inputs, step=self.state.global_step, normalizer=normalizer)
        count = inputs["amopo_num_samples"]
        self._sums.add(result, inputs["amopo_layout"], num_samples=count)
        # A filler keeps this rank in step with the others and counts for nothing.
        loss = result.loss if count else result.loss * 0.0
        return (loss, result) if return_outputs else loss

    def _run(
        self, model: nn.Module, inputs: dict[str, Any], *, step: int, normalizer: Tensor | float | None = None
    ) -> FusedLoss:
        args = self.args
        layout = inputs["amopo_layout"]
        logps = model(input_ids=inputs["input_ids"], position_ids=inputs["position_ids"], amopo_layout=layout)
        return loss_from_logps(
            check_logps_dtype(logps),
            layout,
            objective=args.objective,
            beta=args.beta,
            gamma=args.gamma,
            weights=self._weights,
            pooled=args.pooled,
            normalizer=normalizer,
            sample_ids=inputs["amopo_sample_ids"],
            seed=args.noise_seed,
            step=step,
        )

    def _all_reduce(self, values: Tensor) -> Tensor:
        return self.accelerator.reduce(values, reduction="sum") if self.args.world_size > 1 else values

    # ---- the run ----

    def train(self, resume_from_checkpoint: str | bool | None = None, **kwargs: Any) -> Any:
        """Train; with `resume_from_checkpoint=True` go on from the newest complete checkpoint, or from a given one.

        Raises:
            ValueError: no train_dataset, no complete checkpoint, or one of a run with other settings, data or model.
        """
        rank = self.args.process_index if self.args.save_on_each_node else None
        planned_ranks = None
        if resume_from_checkpoint:
            # Where every node keeps checkpoints of its own, the other nodes' random states are not here.
            if resume_from_checkpoint is True:
                resume_from_checkpoint = latest_checkpoint(self.args.output_dir, rank=rank)
            recorded = read_settings(resume_from_checkpoint)
            planned_ranks = ranks_to_plan_for(recorded, self.args)
            if self.args.auto_budget:
                keep_budget(self.args, recorded)
        self._loaders.plan_run(planned_ranks)
        self.get_train_dataloader()
        if not any(parameter.requires_grad for parameter in self.model.parameters()):
            raise ValueError("no parameter of the model requires a gradient; nothing would be trained")
        if resume_from_checkpoint:
            check_same_run(resume_from_checkpoint, self.run_record(), rank=rank)
            check_weight_names(resume_from_checkpoint, self.model)
            resume_from_checkpoint = str(resume_from_checkpoint)
            self.fit_checkpoint(resume_from_checkpoint)
        if self.args.self_check:
            check_first_batch(self)
        if self.args.auto_budget and not resume_from_checkpoint:
            if self.args.gradient_checkpointing:
                enable_checkpointing(causal_lm(self.model))
            fit_budget(self)
        if self.args.should_save:
            write_run_record(self.args.output_dir, self.run_record())
        self._sums = MetricSums(self.args.objectives)
        self._clock.reset()
        try:
            return super().train(resume_from_checkpoint=resume_from_checkpoint or None, **kwargs)
        except RuntimeError as error:
            if not is_out_of_memory(error):
                raise
            raise explained(error, self) from error

    @property
    def longest_sample(self) -> int:
        """Tokens of the longest sample in a packed row, of training or evaluation; no budget can be below it."""
        return self._loaders.longest

    @property
    def train_lengths(self) -> Sequence[int]:
        """Tokens of every training sample in a packed row."""
        return self._train_table.lengths

    def plan_batches(self) -> None:
        """Plan the training batches anew, for the settings as they are now."""
        self._loaders.plan_run()
        self.get_train_dataloader()

    def largest_batch(self) -> dict[str, Any]:
        """This rank's training batch of most tokens, in the first epoch."""
        loader = self.get_train_dataloader()
        lengths = self.train_lengths
        # ~index is a filler's
        indices = max(loader.batch_sampler, key=lambda batch: sum(lengths[i if i >= 0 else ~i] for i in batch))
        return loader.collate_fn([loader.dataset[i] for i in indices])
