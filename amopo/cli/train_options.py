"""The options of `amopo train`, and the trainer's settings that they make.

`options()` -> the command's own options, and those fields of `AMoPOConfig` that it does not decide itself.
`check_numbers(settings)` raises `UsageError` for a number that no run can have, before any file is read.
`make_config(settings)` -> the `AMoPOConfig`, which checks everything else, the output directory included.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from amopo.cli.errors import UsageError
from amopo.cli.models import DTYPES, need
from amopo.cli.options import Option, Settings, options_of
from amopo.cli.preference_file import data_options, objectives_of
from amopo.data import get_template

# Fields of AMoPOConfig that --help shows; --help-all shows every one.
IMPORTANT = (
    "learning_rate",
    "num_train_epochs",
    "max_steps",
    "beta",
    "gamma",
    "weights",
    "objective_weights",
    "tokens_per_batch",
    "gradient_accumulation_steps",
    "bf16",
    "gradient_checkpointing",
    "save_steps",
    "logging_steps",
    "seed",
)
HELP = {
    "num_train_epochs": "passes over the training pairs",
    "max_steps": "optimizer steps; overrides the epochs",
    "gradient_accumulation_steps": "micro-batches per optimizer step",
    "learning_rate": "peak of the learning rate",
    "beta": "scale of the reward",
    "gamma": "margin that a pair must exceed",
    "weights": "where the objectives' weights come from, or fixed",
    "objective_weights": "with --weights fixed: one number per objective",
    "tokens_per_batch": "most tokens of a micro-batch, which holds whole samples",
    "bf16": "mixed precision in bfloat16",
    "gradient_checkpointing": "recompute activations to save memory",
    "save_steps": "steps between checkpoints",
    "logging_steps": "steps between logs; below 1: a share of all steps",
    "seed": "seed of everything that is drawn",
}
# Where the command's defaults differ: about 40 points on each curve, however long the run is.
DEFAULTS = {"logging_steps": 0.025}
# Settings that are the command's own, that it decides, or that the trainer does not read.
OWN = (
    "objectives",
    "orientation",
    "output_dir",
    "disable_tqdm",
    "report_to",
    "debug",
    "do_train",
    "do_eval",
    "do_predict",
    "resume_from_checkpoint",
    "local_rank",
)


def options() -> list[Option]:
    need("transformers", "hf")
    from amopo.trainer.config import AMoPOConfig

    loaded = f"of the loaded weights: {', '.join(DTYPES)} (default: float32; with --lora-r and --bf16 bfloat16)"
    own = [
        *(replace(o, type=str | None, default=None, help=loaded) if o.name == "dtype" else o for o in data_options()),
        Option("output_dir", str, "where the model and metrics.json go", default="runs/train", metavar="DIR"),
        Option(
            "eval_data", str | None, "file to evaluate on, instead of a held-out part", default=None, metavar="FILE"
        ),
        Option("eval_fraction", float, "share of the prompts that is held out", default=0.1),
        Option("resume", bool | str | None, "go on from the last checkpoint, or from the given one", default=None),
        Option("force", bool, "begin anew in a folder that holds another run; deletes its checkpoints", default=False),
        Option("nproc", int | None, "processes on this machine, one per GPU", default=None, metavar="N"),
        Option("dry_run", bool, "check everything and say what would be done; writes nothing", default=False),
        Option(
            "lora_r",
            int | None,
            "train LoRA adapters of this rank; with --bf16 the frozen weights are loaded in bfloat16 (--dtype)",
            default=None,
        ),
        Option("lora_alpha", float | None, "scale of the adapters (default: twice the rank)", default=None),
        Option("imitation_epochs", float, "for scratch models: passes of imitation first", default=3.0),
        Option("imitation_learning_rate", float, "for scratch models", default=2e-3, important=False),
        Option("imitation_tokens", int, "tokens per imitation step", default=4096, important=False),
        Option("imitation_conditioned", float, "share of prompts with a template", default=0.5, important=False),
        Option("samples", int, "held-out prompts to answer before and after, for the report", default=8),
        Option("sample_tokens", int, "longest of these answers", default=128, important=False),
        Option("report", bool, "end with a report (report.html, as amopo report does)", default=True, important=False),
        Option("report_to", str, "tracker that metrics are sent to", default="none", important=False),
    ]
    trainers = options_of(AMoPOConfig, important=IMPORTANT, exclude=OWN, help=HELP)
    trainers = [replace(option, default=DEFAULTS.get(option.name, option.default)) for option in trainers]
    # declared as text there; a flag without a value turns it on, as in transformers' own parser
    return own + [replace(option, type=bool | str | None) if option.name == "fsdp" else option for option in trainers]


def check_numbers(settings: Settings) -> None:
    """Imitation's and the samples' settings."""
    for name in ("imitation_epochs", "imitation_learning_rate", "imitation_tokens"):
        if not settings.values[name] > 0:
            raise UsageError(f"--{name.replace('_', '-')}: a number above 0 is needed, not {settings.values[name]}")
    if settings.samples < 0:
        raise UsageError(f"--samples: 0 (none) or more, not {settings.samples}")
    if settings.sample_tokens < 1:
        raise UsageError(f"--sample-tokens: at least 1, not {settings.sample_tokens}; --samples 0 leaves them out")
    if not 0 <= settings.imitation_conditioned <= 1:
        raise UsageError(f"--imitation-conditioned: a share between 0 and 1, not {settings.imitation_conditioned}")


def make_config(settings: Settings) -> Any:
    """The trainer's settings; raises for what cannot work, an output directory that cannot be written included."""
    from amopo.trainer.config import AMoPOConfig

    if settings.values.get("deepspeed"):
        need("deepspeed", "deepspeed")
    names = {option.name for option in options_of(AMoPOConfig, exclude=OWN)}
    given = {name: settings.values[name] for name in settings.given if name in names}
    given = DEFAULTS | given
    # Templates after the prompt leave it a common beginning of all K prompts.
    given.setdefault("sharing", "tree" if get_template(settings.template).position == "suffix" else "pair")
    args = AMoPOConfig(
        output_dir=settings.output_dir,
        objectives=objectives_of(settings),
        orientation=settings.orientation,
        report_to=settings.report_to,
        **given,
    )
    args.disable_tqdm = True  # amopo.cli.callback shows the progress
    return args
