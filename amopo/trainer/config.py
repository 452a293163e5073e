"""The settings of AMoPO training, checked before anything is loaded.

Contract
--------
`AMoPOConfig` is transformers' `TrainingArguments` plus the fields below. Construction raises ValueError or TypeError
for what cannot work: no objectives, a beta that is not positive, a budget that is not positive, an output directory
that cannot be written, an unknown name (the message lists the known ones), and options of `TrainingArguments` that
have no meaning here, which would otherwise be ignored silently (`per_device_train_batch_size`: batches are filled to
`tokens_per_batch`), a run of no epochs and no steps, and fp16 on a CPU, which would train in fp32. Numbers may be
written as text ("1e-6" is what YAML makes of 1e-6).

Defaults that differ from `TrainingArguments`: `learning_rate` 1e-6 (the paper uses 3e-7 to 5e-6),
`logging_nan_inf_filter` False (a loss that is NaN shows, and no step waits for the device to find out).
"""

from __future__ import annotations

import dataclasses
import math
import numbers
import os
from dataclasses import dataclass, field
from pathlib import Path

from transformers import TrainingArguments

from amopo import objectives as objective_registry
from amopo import weights as weight_registry
from amopo.data.pairs import ORIENTATIONS
from amopo.packing.trie import check_sharing

FIXED = "fixed"
POOLED = ("union", "sum")
LOGITS_DTYPES = ("float32", "input")
MAX_SEED = 2**64 - 1
# Fields that hold a number; None stays where it is the default.
_REALS = (
    "beta",
    "gamma",
    "learning_rate",
    "num_train_epochs",
    "warmup_steps",
    "warmup_ratio",
    "weight_decay",
    "max_grad_norm",
    "adam_beta1",
    "adam_beta2",
    "adam_epsilon",
    "neftune_noise_alpha",
)
_INTEGERS = ("noise_seed", "seed", "data_seed", "max_steps", "gradient_accumulation_steps")

# Options of TrainingArguments that token-budget batches and the fused loss leave without meaning, and what to use.
_MEANINGLESS = {
    "per_device_train_batch_size": "batches are filled to tokens_per_batch; max_samples_per_batch limits their samples",
    "per_device_eval_batch_size": "batches are filled to tokens_per_batch; max_samples_per_batch limits their samples",
    "train_sampling_strategy": "batches are shuffled and filled to tokens_per_batch",
    "dataloader_drop_last": "every sample is visited once per epoch",
    "auto_find_batch_size": "lower tokens_per_batch instead",
    "label_smoothing_factor": "the preference loss has no labels to smooth",
    "use_liger_kernel": "the head and the loss are already fused",
    "torch_compile": "this version trains uncompiled models",
    "batch_eval_metrics": "evaluation reports the loss's own metrics",
    "bf16_full_eval": "evaluation runs in the precision of training",
    "fp16_full_eval": "evaluation runs in the precision of training",
}


@dataclass
class AMoPOConfig(TrainingArguments):
    """Settings of `AMoPOTrainer`."""

    learning_rate: float = field(default=1e-6, metadata={"help": "Peak learning rate; the paper uses 3e-7 to 5e-6."})
    logging_nan_inf_filter: bool = field(
        default=False, metadata={"help": "Leave NaN losses out of the logged mean. It makes every step wait."}
    )
    objectives: list[str] = field(
        default_factory=list,
        metadata={"help": "Names of the K objectives, in the order of each sample's prompts."},
    )
    objective: str = field(default="amopo", metadata={"help": "The loss, by its name in amopo.objectives."})
    beta: float = field(default=0.8, metadata={"help": "Scale of the mean log-prob difference; positive."})
    gamma: float = field(default=0.0, metadata={"help": "Margin that the scaled difference must exceed (paper: 0)."})
    weights: str = field(
        default="gaussian",
        metadata={"help": 'Source of the objective weights: a name in amopo.weights, or "fixed".'},
    )
    objective_weights: list[float] | None = field(
        default=None, metadata={"help": 'One weight per objective, for weights="fixed"; normalised to sum 1.'}
    )
    pooled: str = field(
        default="union",
        metadata={"help": 'Statistics over chosen and rejected together ("union"), or each alone, added ("sum").'},
    )
    orientation: str = field(
        default="overall",
        metadata={"help": 'One winner for every objective ("overall"), or the samples\' signs ("per_objective").'},
    )
    preset: str | None = field(
        default=None, metadata={"help": 'No preset works with token-budget batches; "official" is refused.'}
    )
    tokens_per_batch: int = field(
        default=8192, metadata={"help": "Most tokens of one micro-batch on one device, all 2K sequences of a sample."}
    )
    max_samples_per_batch: int | None = field(default=None, metadata={"help": "Most samples of one micro-batch."})
    rows_per_batch: int | None = field(
        default=None, metadata={"help": "Most response tokens of one micro-batch that go through the head."}
    )
    auto_budget: bool = field(
        default=False,
        metadata={"help": "Halve tokens_per_batch before the first step until the largest batch fits into memory."},
    )
    sharing: str = field(
        default="pair",
        metadata={"help": 'What sequences of a sample share in a row: "none", "pair" (its prompts), or "tree".'},
    )
    self_check: bool = field(
        default=False, metadata={"help": "Compare the first batch with separate forwards before training."}
    )
    head_budget: int | None = field(
        default=None, metadata={"help": "Bytes for everything that grows with the vocabulary; None: a fixed default."}
    )
    logits_dtype: str | None = field(
        default=None, metadata={"help": 'Precision of the logits: None (best that is fast), "float32", "input".'}
    )
    noise_seed: int | None = field(default=None, metadata={"help": "Seed of the weights' noise; None: args.seed."})

    def __post_init__(self) -> None:
        self._check_numbers()
        self._check_objectives()
        self._check_loss()
        self._check_batches()
        self._check_training()
        self._check_meaningless()
        if not self.num_train_epochs > 0 and self.max_steps <= 0:
            raise ValueError(
                f"num_train_epochs={self.num_train_epochs} with max_steps={self.max_steps} trains nothing; set one of "
                "them above 0"
            )
        if isinstance(self.fsdp, str) and self.fsdp.lower() in ("true", "false"):
            self.fsdp = self.fsdp.lower() == "true"  # text from a flag or a file, which transformers would not know
        super().__post_init__()
        if self.fp16 and self.device.type == "cpu":
            raise ValueError("fp16=True has no effect on a CPU, it would train in fp32; leave it out or use bf16=True")
        if self.noise_seed is None:
            self.noise_seed = self.seed
        check_writable(self.output_dir)

    @property
    def num_objectives(self) -> int:
        """K."""
        return len(self.objectives)

    def _check_numbers(self) -> None:
        """Numbers as numbers, also where a configuration file made text of them."""
        defaults = {f.name: f.default for f in dataclasses.fields(self)}
        for name in _REALS:
            value = getattr(self, name, None)
            if value is None and defaults.get(name) is None:
                continue
            setattr(self, name, _real(value, name))
        for name in _INTEGERS:
            value = getattr(self, name, None)
            if value is None and defaults.get(name) is None:
                continue
            if isinstance(value, bool) or not isinstance(value, numbers.Integral):
                raise TypeError(f"{name} must be an integer, got {value!r}")

    def _check_objectives(self) -> None:
        names = self.objectives
        if not isinstance(names, list | tuple) or not all(isinstance(name, str) for name in names):
            raise TypeError(f"objectives must be a list of names, got {names!r}")
        self.objectives = list(names)
        if not names:
            raise ValueError("objectives is empty (K = 0); name at least one objective")
        if any(not name.strip() for name in names):
            raise ValueError(f"objectives contains an empty name: {list(names)}")
        repeated = sorted({name for name in names if list(names).count(name) > 1})
        if repeated:
            raise ValueError(f"objectives repeats {', '.join(repeated)}; name each objective once")

    def _check_loss(self) -> None:
        if self.preset is not None:
            if self.preset == "official":
                raise ValueError(
                    "preset='official' weights a sample by the others in its micro-batch, which token-budget batches "
                    "choose freely; use fused_loss(preset='official') for parity, or weights='gaussian' to train"
                )
            raise ValueError(f"preset={self.preset!r} is not known; leave it None")
        objective_registry.get(self.objective)
        if not (math.isfinite(self.beta) and self.beta > 0):
            raise ValueError(f"beta must be positive and finite, got {self.beta}")
        if not math.isfinite(self.gamma):
            raise ValueError(f"gamma must be finite, got {self.gamma}")
        if self.weights == FIXED:
            self._check_fixed_weights()
        else:
            known = weight_registry.list()
            if self.weights not in known:
                raise ValueError(f"weights={self.weights!r} is not known; known: {', '.join([*known, FIXED])}")
            if self.objective_weights is not None:
                raise ValueError(
                    f"objective_weights has no effect with weights={self.weights!r}; set weights={FIXED!r} or leave it"
                )
        if self.pooled not in POOLED:
            raise ValueError(f"pooled={self.pooled!r} is not known; known: {', '.join(POOLED)}")
        if self.orientation not in ORIENTATIONS:
            raise ValueError(f"orientation={self.orientation!r} is not known; known: {', '.join(ORIENTATIONS)}")
        if self.logits_dtype is not None and self.logits_dtype not in LOGITS_DTYPES:
            raise ValueError(
                f"logits_dtype={self.logits_dtype!r} is not known; known: None, {', '.join(LOGITS_DTYPES)}"
            )
        if self.noise_seed is not None and not 0 <= self.noise_seed <= MAX_SEED:
            raise ValueError(f"noise_seed must be between 0 and 2^64 - 1, got {self.noise_seed}")

    def _check_fixed_weights(self) -> None:
        given = self.objective_weights
        if given is not None:
            if not isinstance(given, list | tuple):
                raise TypeError(f"objective_weights must be a list of numbers, got {given!r}")
            given = self.objective_weights = [_real(w, f"objective_weights[{i}]") for i, w in enumerate(given)]
        if given is None or len(given) != len(self.objectives):
            raise ValueError(
                f"weights='fixed' needs objective_weights with one number per objective ({len(self.objectives)}: "
                f"{', '.join(self.objectives)}), got {given}"
            )
        if not all(math.isfinite(w) and w >= 0 for w in given) or sum(given) <= 0:
            raise ValueError(f"objective_weights must be finite, not negative and not all zero, got {given}")

    def _check_batches(self) -> None:
        check_sharing(self.sharing)
        for name, optional in (
            ("tokens_per_batch", False),
            ("max_samples_per_batch", True),
            ("rows_per_batch", True),
            ("head_budget", True),
        ):
            value = getattr(self, name)
            if value is None and optional:
                continue
            if isinstance(value, bool) or not isinstance(value, int):
                raise TypeError(f"{name} must be an integer, got {value!r}")
            if value < 1:
                raise ValueError(f"{name} must be at least 1, got {value}")

    def _check_training(self) -> None:
        """What transformers would find out only when it comes to it, or not at all."""
        if not (math.isfinite(self.learning_rate) and self.learning_rate >= 0):
            raise ValueError(f"learning_rate must be finite and not negative, got {self.learning_rate}")
        if self.gradient_accumulation_steps < 1:
            raise ValueError(f"gradient_accumulation_steps must be at least 1, got {self.gradient_accumulation_steps}")
        if self.max_steps == 0:
            raise ValueError("max_steps=0 would be ignored, and num_train_epochs count; leave it out, or set a number")
        for name in ("seed", "data_seed"):
            value = getattr(self, name)
            if value is not None and not 0 <= value < 2**32:
                raise ValueError(f"{name} must be between 0 and 2^32 - 1, got {value}")

    def _check_meaningless(self) -> None:
        defaults = {f.name: f.default for f in dataclasses.fields(TrainingArguments)}
        for name, instead in _MEANINGLESS.items():
            value = getattr(self, name, defaults.get(name))
            if value != defaults.get(name):
                raise ValueError(f"{name}={value!r} has no meaning in AMoPOTrainer: {instead}")


def _real(value: object, name: str) -> float | int:
    if isinstance(value, str):
        try:
            return float(value)
        except ValueError:
            raise ValueError(f"{name} must be a number, got {value!r}") from None
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        raise TypeError(f"{name} must be a number, got {value!r}")
    return value


def check_writable(directory: str | os.PathLike) -> None:
    """Raise if files cannot be made in `directory`, which need not exist yet; nothing is created."""
    path = Path(directory).expanduser().absolute()
    existing = path
    while not os.path.lexists(existing):
        existing = existing.parent
    if not existing.is_dir():
        raise ValueError(f"output_dir {str(directory)!r} is not writable: {str(existing)!r} is not a directory")
    if not os.access(existing, os.W_OK | os.X_OK):
        raise ValueError(f"output_dir {str(directory)!r} is not writable: no permission to write to {str(existing)!r}")
