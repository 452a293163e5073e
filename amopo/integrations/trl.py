"""AMoPO on TRL's preference datasets, in TRL's script style.

    trainer = AMoPOTrainer("Qwen/Qwen2.5-0.5B-Instruct", AMoPOConfig(objectives=["helpfulness", "brevity"], ...),
                           train_dataset=dataset, peft_config=get_peft_config(model_args))

Contract
--------
A dataset is a `datasets.Dataset` or a list of rows in TRL's preference format, with two columns more:

    prompt, chosen, rejected         strings, or lists of {"role", "content"} (chosen and rejected: one assistant
                                     message); without `prompt` it is what chosen and rejected begin with alike
    chosen_scores, rejected_scores   {objective: number}, on the objectives' scales
    id                               optional; else the row's number

- `tokenize_preferences(dataset, tokenizer, ...)` -> `TokenizedSample`s, whose K prompts are the row's prompt with each
  objective's template written in (`amopo.templates`). Conversations go through the chat template. Plain strings do not:
  the text is tokenised as it stands, and eos ends the response. `rejected_scores` may be missing; `chosen_scores` only
  with template="plain", which shows none.
- `AMoPOConfig`, `AMoPOTrainer`: those of `amopo`, on such datasets; arguments as TRL's trainers have them. They extend
  `transformers.Trainer`, not TRL's trainers, which would load a reference model.
- `PreferenceCollator`: rows of such a dataset -> batches for `amopo.integrations.hf.AMoPOMixin`.

Where it differs from TRL: chosen and rejected are tokenised apart from the prompt, since K prompts share them (TRL
tokenises both together, which merges tokens across the boundary of plain strings now and then); what a chat template
writes after the end-of-turn token is left out; too long texts are cut as in `amopo.data`, not dropped.

Unsupported (raises): IterableDataset, images, tools, several messages in one response.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback, TrainingArguments

from amopo.data import TokenizationReport, parse_scales
from amopo.integrations.collator import PreferenceCollator as _PreferenceCollator
from amopo.integrations.trl_format import COLUMNS, tokenize_preferences
from amopo.packing import TokenizedSample
from amopo.trainer.config import AMoPOConfig as _AMoPOConfig
from amopo.trainer.trainer import AMoPOTrainer as _AMoPOTrainer

__all__ = ["AMoPOConfig", "AMoPOTrainer", "PreferenceCollator", "tokenize_preferences"]


@dataclass(frozen=True)
class PreferenceCollator:
    """Rows of a TRL preference dataset -> batches of `amopo.integrations.hf.PreferenceCollator`, tokenised on the fly.

    A row without `id` is named by its texts, so that its noise is its own however rows are shuffled.
    """

    tokenizer: Any
    objectives: Sequence[str]
    scales: Mapping[str, Any] | None = None
    template: Any = "rubric"
    max_prompt_length: int = 512
    max_response_length: int = 512
    packed: bool = True
    sharing: str = "pair"
    pad_to_multiple_of: int | None = None

    columns = COLUMNS

    def __call__(self, rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        batch = _PreferenceCollator(
            pad_token_id=None if self.packed else self.tokenizer.pad_token_id,
            packed=self.packed,
            sharing=self.sharing,
            pad_to_multiple_of=self.pad_to_multiple_of,
        )
        return batch([self._sample(row) for row in rows])

    def _sample(self, row: Mapping[str, Any]) -> TokenizedSample:
        if row.get("id") is None:
            row = {**row, "id": repr([row.get(column) for column in ("prompt", "chosen", "rejected")])}
        samples, _ = tokenize_preferences(
            [row],
            self.tokenizer,
            objectives=self.objectives,
            scales=self.scales,
            template=self.template,
            max_prompt_length=self.max_prompt_length,
            max_response_length=self.max_response_length,
            name="row",
        )
        return samples[0]


@dataclass
class AMoPOConfig(_AMoPOConfig):
    """`amopo.AMoPOConfig` with what turns text into samples; every field is also a flag of a `TrlParser`."""

    _VALID_DICT_FIELDS = [*getattr(TrainingArguments, "_VALID_DICT_FIELDS", []), "model_init_kwargs"]

    model_init_kwargs: dict[str, Any] | str | None = field(
        default=None, metadata={"help": "Arguments of from_pretrained, where the model is given by its name."}
    )
    trust_remote_code: bool = field(default=False, metadata={"help": "Run code that comes with a model."})
    template: str = field(default="rubric", metadata={"help": "How an objective is written into a prompt."})
    scales: str | None = field(
        default=None, metadata={"help": "Scale of every objective that a template shows: helpfulness=0:4,safety=0:1."}
    )
    max_prompt_length: int = field(default=512, metadata={"help": "Most tokens of a prompt, template included."})
    max_response_length: int = field(default=512, metadata={"help": "Most tokens of a response."})

    def tokenization(self) -> dict[str, Any]:
        """The arguments of `tokenize_preferences`."""
        return {
            "objectives": self.objectives,
            "scales": parse_scales(self.scales or ""),
            "template": self.template,
            "max_prompt_length": self.max_prompt_length,
            "max_response_length": self.max_response_length,
        }


class AMoPOTrainer(_AMoPOTrainer):
    """`amopo.AMoPOTrainer` on TRL's preference datasets.

    Args:
        model: a name or folder, a causal LM, or a PEFT model. args: an `AMoPOConfig` of this module.
        train_dataset, eval_dataset: see the module; eval_dataset may be a mapping of several.
        processing_class: the tokenizer; by default the one that belongs to the model's name.
        peft_config: wraps the model. quantization_config: for a model given by its name.
    """

    def __init__(
        self,
        model: Any,
        args: AMoPOConfig,
        *,
        train_dataset: Any = None,
        eval_dataset: Any = None,
        processing_class: Any = None,
        callbacks: list[TrainerCallback] | None = None,
        optimizers: tuple[Any, Any] = (None, None),
        quantization_config: Any = None,
        peft_config: Any = None,
    ) -> None:
        if not isinstance(args, AMoPOConfig):
            raise TypeError(f"args must be an amopo.integrations.trl.AMoPOConfig, got {type(args).__name__}")
        tokenizer = processing_class
        if tokenizer is None:
            source = model if isinstance(model, str) else getattr(model.config, "_name_or_path", "")
            if not source:
                raise ValueError("processing_class is needed: the model does not say where its tokenizer is")
            tokenizer = AutoTokenizer.from_pretrained(source, trust_remote_code=args.trust_remote_code)
        train, self.train_report = _samples(train_dataset, tokenizer, args, "train_dataset")
        if isinstance(eval_dataset, Mapping):
            named = {k: _samples(v, tokenizer, args, f"eval_dataset[{k!r}]")[0] for k, v in eval_dataset.items()}
        else:
            named, _ = _samples(eval_dataset, tokenizer, args, "eval_dataset")
        super().__init__(
            _with_adapter(_loaded(model, args, quantization_config), peft_config),
            args,
            train_dataset=train,
            eval_dataset=named,
            processing_class=tokenizer,
            callbacks=callbacks,
            optimizers=optimizers,
        )

    def evaluate(self, eval_dataset: Any = None, **kwargs: Any) -> dict[str, float]:
        """As `Trainer.evaluate`; a dataset given here is tokenised like the others."""
        is_rows = eval_dataset is not None and not isinstance(eval_dataset, str | Mapping)
        if is_rows and not isinstance(eval_dataset[0], TokenizedSample):
            eval_dataset, _ = _samples(eval_dataset, self.processing_class, self.args, "eval_dataset")
        return super().evaluate(eval_dataset, **kwargs)


def _samples(
    dataset: Any, tokenizer: Any, args: AMoPOConfig, name: str
) -> tuple[list[TokenizedSample] | None, TokenizationReport | None]:
    if dataset is None:
        return None, None
    return tokenize_preferences(dataset, tokenizer, **args.tokenization(), name=name)


def _loaded(model: Any, args: AMoPOConfig, quantization_config: Any) -> Any:
    if not isinstance(model, str):
        for name, value in (
            ("args.model_init_kwargs", args.model_init_kwargs),
            ("quantization_config", quantization_config),
        ):
            if value:
                raise ValueError(f"{name} is for a model given by its name, but this one is loaded already")
        return model
    options = dict(args.model_init_kwargs or {})
    options.setdefault("dtype", "float32")  # as TRL loads models
    options.setdefault("trust_remote_code", args.trust_remote_code)
    if quantization_config is not None:
        options["quantization_config"] = quantization_config
    if args.world_size > 1:
        options["device_map"] = None
    return AutoModelForCausalLM.from_pretrained(model, **options)


def _with_adapter(model: Any, peft_config: Any) -> Any:
    if peft_config is None:
        return model
    from peft import PeftModel, get_peft_model

    if isinstance(model, PeftModel):
        raise ValueError("the model carries an adapter already; pass it without peft_config")
    return get_peft_model(model, peft_config)
