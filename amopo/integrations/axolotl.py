"""AMoPO in axolotl: a plugin with data, collator and trainer.

    plugins: [amopo.integrations.axolotl.AMoPOPlugin]
    datasets: [{path: preferences.jsonl, type: amopo}]   # grouped JSONL or HelpSteer2's own rows, see docs/data.md
    amopo_objectives: [helpfulness, correctness]

The plugin reads the data and gives the builder `AMoPOCollator` and `trainer_class(...)`: axolotl's trainer with AMoPO's
loss on log-probs that are made without logits. Model loading, adapters, optimizers, DeepSpeed and FSDP configuration,
callbacks and checkpoints are axolotl's. axolotl pins a transformers that is too old for packed rows, so batches are
padded: `micro_batch_size` samples of 2K sequences each.

The loss is the mean over a micro-batch's samples, averaged over accumulation steps and ranks. The weights' noise is
keyed by (seed, optimizer step, sample, objective); in evaluations the step is 0. Metrics have TRL's names and are exact
means over samples and ranks.

Unsupported (raises): `rl:` (its builder gives a plugin's trainer no model), several datasets, sample packing,
streaming, context parallelism. axolotl also logs `ppl`, the exponential of the loss; it means nothing here.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from axolotl.integrations.base import BasePlugin
from pydantic import BaseModel
from torch import Tensor
from transformers import Trainer

from amopo.data import build_pairs, read_records, scales_of, split_records, tokenize_pairs
from amopo.data.scales import as_scales, check_objectives
from amopo.data.templates import get_template
from amopo.integrations.llamafactory.forward import IGNORE_INDEX, label_logps, patch_logps
from amopo.packing.sample import sample_id_to_int64
from amopo.padded import sequence_rows
from amopo.preference_loss import FusedLoss, LossSettings, loss_from_tokens
from amopo.trainer.engines import check_parallelism
from amopo.trainer.metrics import MetricSums
from amopo.trainer.micro_batches import ReducedMicroBatches

ORDER, TYPE = "sample_major", "amopo"
EVALUATION_STEP = 0
# What axolotl would do to batches that are not its own.
_REFUSED = {
    "rl": "axolotl's RL builder gives a plugin's trainer no model; the plugin replaces it",
    "pretraining_dataset": "the data are preferences",
    "sample_packing": "samples are padded",
    "streaming": "samples are tokenised before training",
    "batch_flattening": "samples are padded",
    "curriculum_sampling": "samples are shuffled",
}


class AMoPOArgs(BaseModel):
    """The plugin's keys in axolotl's YAML."""

    amopo_objectives: list[str] | None = None
    amopo_scales: dict[str, list[float]] | None = None
    amopo_template: str = "rubric"
    amopo_max_prompt_length: int | None = None
    amopo_max_response_length: int | None = None
    amopo_beta: float = 0.8
    amopo_gamma: float = 0.0
    amopo_weights: str | list[float] = "gaussian"
    amopo_pooled: str = "union"


@dataclass(frozen=True)
class Settings:
    """The loss of `trainer_class`; the arguments of `amopo.fused_loss` of the same names."""

    objectives: tuple[str, ...]
    beta: float = 0.8
    gamma: float = 0.0
    weights: str | tuple[float, ...] = "gaussian"
    pooled: str = "union"

    def __post_init__(self) -> None:
        check_objectives(self.objectives)
        if not isinstance(self.weights, str) and len(self.weights) != len(self.objectives):
            raise ValueError(f"amopo_weights has {len(self.weights)} numbers for {len(self.objectives)} objectives")
        self.loss(seed=0, step=0, device=torch.device("cpu")).check()

    def loss(self, *, seed: int, step: int, device: torch.device) -> LossSettings:
        """The settings of one call of the loss."""
        weights = self.weights if isinstance(self.weights, str) else torch.tensor(self.weights, device=device)
        return LossSettings(self.beta, self.gamma, "amopo", weights, self.pooled, None, None, seed, step)


def settings_of(cfg: Any) -> Settings:
    """The settings in axolotl's configuration, after everything that cannot be right was refused by name."""
    for name, why in _REFUSED.items():
        if cfg.get(name):
            raise ValueError(f"{name} cannot be set with AMoPOPlugin: {why}; leave it out")
    if (cfg.get("context_parallel_size") or 1) > 1:
        raise ValueError("context_parallel_size splits sequences, which AMoPOPlugin does not support; leave it out")
    if not cfg.get("amopo_objectives"):
        raise ValueError("AMoPOPlugin needs amopo_objectives, e.g. amopo_objectives: [helpfulness, correctness]")
    weights = cfg.get("amopo_weights", "gaussian")
    return Settings(
        objectives=tuple(cfg.get("amopo_objectives")),
        beta=float(_given(cfg, "amopo_beta", 0.8)),
        gamma=float(_given(cfg, "amopo_gamma", 0.0)),
        weights=(weights or "gaussian") if isinstance(weights, str | None) else tuple(map(float, weights)),
        pooled=_given(cfg, "amopo_pooled", "union"),
    )


def _given(cfg: Any, name: str, default: Any) -> Any:
    # axolotl's dictionary answers None for what is not there.
    value = cfg.get(name)
    return default if value is None else value


class AMoPOPlugin(BasePlugin):
    """`plugins: [amopo.integrations.axolotl.AMoPOPlugin]`."""

    def get_input_args(self) -> str:
        """Where axolotl finds the model of the plugin's keys."""
        return f"{__name__}.AMoPOArgs"

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
        steps = math.ceil(len(train) * _given(cfg, "num_epochs", 1.0) / _given(cfg, "batch_size", 1))
        steps = min(steps, cfg.get("max_steps") or steps)
        return TrainDatasetMeta(
            train_dataset=_dataset(train),
            eval_dataset=_dataset(evaluation) if evaluation else None,
            total_num_steps=steps,
        )


def tokenized_rows(cfg: Any, tokenizer: Any) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Training and evaluation samples: `prompts` (K lists of ids), `chosen`, `rejected`, `sample_id`."""
    objectives = settings_of(cfg).objectives
    path, evaluation_path = _path(cfg, "datasets"), _path(cfg, "test_datasets")
    if path is None:
        raise ValueError("AMoPOPlugin needs datasets: [{path: preferences.jsonl, type: amopo}]")
    given = as_scales(cfg.get("amopo_scales") and dict(cfg.get("amopo_scales")))
    records = read_records(path, objectives=objectives, scales=given)
    held_out = []
    if evaluation_path is not None:
        held_out = read_records(evaluation_path, objectives=objectives, scales=given)
    elif fraction := cfg.get("val_set_size"):
        if not 0 < fraction < 1:
            raise ValueError(f"val_set_size must be a fraction of the prompts between 0 and 1, got {fraction}")
        records, held_out = split_records(records, eval_fraction=fraction, seed=_given(cfg, "seed", 0))
    length = _given(cfg, "sequence_len", 2048)
    prompt_length = _given(cfg, "amopo_max_prompt_length", length // 2)
    options = {
        "template": get_template(_given(cfg, "amopo_template", "rubric")),
        "max_prompt_length": prompt_length,
        "max_response_length": _given(cfg, "amopo_max_response_length", length - prompt_length),
    }
    found = []
    for part in (records, held_out):
        if not part:
            found.append([])
            continue
        pairs, pair_report = build_pairs(part, objectives=objectives)
        samples, report = tokenize_pairs(pairs, tokenizer, objectives=objectives, scales=scales_of(part), **options)
        print(f"AMoPO: {pair_report}\nAMoPO: {report}")
        found.append(
            [
                {
                    "prompts": [list(ids) for ids in sample.prompts],
                    "chosen": list(sample.chosen),
                    "rejected": list(sample.rejected),
                    "sample_id": sample_id_to_int64(sample.id),
                    # axolotl counts tokens and drops what is too long by these names
                    "length": max(map(len, sample.prompts)) + max(len(sample.chosen), len(sample.rejected)),
                }
                for sample in samples
            ]
        )
    return found[0], found[1]


def _path(cfg: Any, key: str) -> str | None:
    """The file of the only entry of `datasets` or `test_datasets`."""
    entries = cfg.get(key) or []
    if len(entries) > 1:
        raise ValueError(f"AMoPOPlugin takes one entry in {key}, got {len(entries)}; join the files")
    for entry in entries:
        if entry.get("type") not in (None, TYPE) or not entry.get("path"):
            raise ValueError(f"an entry of {key} must be {{path: preferences.jsonl, type: {TYPE}}}, got {dict(entry)}")
    return entries[0]["path"] if entries else None


def _dataset(rows: list[dict[str, Any]]) -> Any:
    from datasets import Dataset

    return Dataset.from_list(rows)


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
