"""`amopo train`: from a preference file to an aligned model.

Reads, checks, tokenises; imitates first if the model is made from scratch; trains; saves model, tokenizer,
`metrics.json`, `picture.png` and `report.html` in the output directory; shows before and after on the held-out pairs.
`--nproc N` does so on N processes (`amopo.cli.launch`), `--dry-run` says what would be done (`amopo.cli.plan`), Ctrl-C
saves a checkpoint and says how to go on (`amopo.cli.stop`).
"""

from __future__ import annotations

import contextlib
import importlib.util
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from amopo.cli.console import Console, is_main_process
from amopo.cli.ending import leave_group
from amopo.cli.errors import UsageError
from amopo.cli.inputs import Inputs, read_inputs, read_scales, read_score_weights
from amopo.cli.launch import check, is_launched, start
from amopo.cli.models import DTYPES, need, training_dtype
from amopo.cli.options import Option, Settings, options_of
from amopo.cli.output_dir import check_output_dir
from amopo.cli.report import report_after_run
from amopo.cli.stop import go_on, resume_command
from amopo.cli.stop_signals import terminate_like_interrupt
from amopo.data import get_template, with_overall
from amopo.data.pairs import ORIENTATIONS, STRATEGIES, check_pairs_per_prompt
from amopo.data.readers import FORMATS
from amopo.data.scales import check_objectives
from amopo.report.changes import preference_sections

if TYPE_CHECKING:
    from amopo.cli.job import Job

DESCRIPTION = "Aligns a model to several objectives, from a file of scored responses."

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


def data_options() -> list[Option]:
    """What `amopo train` and `amopo eval` share."""
    return [
        Option("model", str, "folder, Hub name, or scratch:tiny for a new small model", metavar="M", required=True),
        Option("data", str, "prompts with scored responses: a file, or hf:owner/name", metavar="FILE", required=True),
        Option("objectives", list[str], "names of the objectives: a,b,c", metavar="A,B,C", required=True),
        Option("scales", dict | str | None, "scale of each objective", default=None, metavar="A=1:6,B=0:4"),
        Option("format", str, f"of the file: {', '.join(FORMATS)}", default="auto", important=False),
        Option(
            "template",
            str,
            "how an objective is written into a prompt: a name, or a .txt or .yaml file",
            default="rubric",
            metavar="NAME|FILE",
        ),
        Option("pairs", str, f"which responses are compared: {', '.join(STRATEGIES)}", default="best_worst"),
        Option(
            "pairs_per_prompt", int | None, "with --pairs all: only the N that differ most", default=None, metavar="N"
        ),
        Option(
            "orientation",
            str,
            "overall: one winner for all objectives; per_objective: each has its own, ties are left out",
            default="overall",
        ),
        Option(
            "overall", bool, "add a leading objective: overall quality, the weighted mean of the others", default=False
        ),
        Option(
            "score_weights",
            Any,
            "weights of the scores, which decide who is chosen",
            default=None,
            metavar="A=2,B=1",
        ),
        Option("max_prompt_length", int, "longest prompt in tokens", default=512),
        Option("max_response_length", int, "longest response in tokens", default=512),
        Option("no_cache", bool, "tokenise anew, and keep nothing", default=False, important=False),
        Option("dtype", str, f"of the loaded weights: {', '.join(DTYPES)}", default="float32", important=False),
    ]


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


def run(settings: Settings) -> int:
    check_choices(settings)
    folder, command = Path(settings.output_dir).expanduser(), resume_command(["train", *settings.argv])
    starts_ranks = settings.nproc is not None and not is_launched()
    use_cpu = bool(settings.values.get("use_cpu"))
    if starts_ranks:
        check(settings.nproc, use_cpu=use_cpu)
    if is_main_process():
        check_output_dir(folder, model=settings.model, resume=settings.resume or False, force=settings.force)
    if starts_ranks and not settings.dry_run:
        return start(["train", *settings.argv], settings.nproc, debug=settings.debug, use_cpu=use_cpu)
    with contextlib.nullcontext() if is_launched() else terminate_like_interrupt():
        job, console = None, Console(quiet=settings.quiet, outlives_readers=not settings.dry_run)
        try:
            job = make_job(settings, command, console)
            if settings.dry_run:
                show_plan(job, settings, console)
            else:
                train(job, settings, console)
        except KeyboardInterrupt as stop:
            if stop.args:  # every rank has stopped after the same step
                leave_group()
            if stop.args or settings.dry_run:
                raise
            how = go_on(folder, command) if job is not None and job.has_begun else "nothing has been trained yet"
            raise KeyboardInterrupt(how) from None
    return 0


def make_job(settings: Settings, command: str, console: Console) -> Job:
    """Settings and data, read and checked."""
    args = make_config(settings)
    parts = {"eval_data": settings.eval_data, "eval_fraction": settings.eval_fraction, "seed": args.seed}
    with console.stage("read"), console.busy("reading") as count:
        inputs = read(settings, on_rows=count, **parts)
    for line in inputs.lines():
        console.say(line)
    quiet_libraries(settings)
    from amopo.cli.job import Imitation, Job

    return Job(
        command="train",
        model=settings.model,
        inputs=inputs,
        args=args,
        template=settings.template,
        max_prompt_length=settings.max_prompt_length,
        max_response_length=settings.max_response_length,
        dtype=training_dtype(settings.dtype, lora_r=settings.lora_r, bf16=args.bf16),
        resume=settings.resume,
        lora_r=settings.lora_r,
        lora_alpha=settings.lora_alpha,
        cache=not settings.no_cache and not settings.dry_run,
        imitation=Imitation(
            epochs=settings.imitation_epochs,
            learning_rate=settings.imitation_learning_rate,
            tokens_per_batch=settings.imitation_tokens,
            conditioned=settings.imitation_conditioned,
        ),
        samples=settings.samples,
        sample_tokens=settings.sample_tokens,
        go_on=command,
        replaces=settings.force,
    )


def train(job: Job, settings: Settings, console: Console) -> None:
    from amopo.cli.job import run_job

    metrics = run_job(job, console)
    if is_main_process():
        report(metrics, job.args.objectives, job.folder, console)
        if settings.report:
            report_after_run(job.folder, console)


def show_plan(job: Job, settings: Settings, console: Console) -> None:
    from amopo.cli.job import tokenize_for
    from amopo.cli.plan import make_plan

    with console.busy("planning"):
        plan = make_plan(
            job,
            world_size=settings.nproc or job.args.world_size,
            tokenize=lambda pairs, tokenizer: tokenize_for(job, pairs, tokenizer, console)[0],
        )
    for line in plan.lines():
        console.say(line)
    console.say(f"output: {job.folder}; nothing was written")


def check_choices(settings: Settings) -> None:
    """Names among which there is a choice, before any file is read."""
    objectives_of(settings)
    get_template(settings.template)
    choices = (("format", FORMATS), ("pairs", STRATEGIES), ("orientation", ORIENTATIONS), ("dtype", DTYPES))
    for name, known in choices:
        if getattr(settings, name) not in known and (name, getattr(settings, name)) != ("dtype", None):
            raise UsageError(f"--{name}: {getattr(settings, name)!r} is not one of {', '.join(known)}")
    try:
        check_pairs_per_prompt(settings.pairs_per_prompt, strategy_of(settings))
    except ValueError as error:
        raise UsageError(f"--pairs-per-prompt: {error}") from None
    for name in ("imitation_epochs", "imitation_learning_rate", "imitation_tokens"):
        if name in settings.values and not settings.values[name] > 0:
            raise UsageError(f"--{name.replace('_', '-')}: a number above 0 is needed, not {settings.values[name]}")
    if settings.values.get("samples", 0) < 0:
        raise UsageError(f"--samples: 0 (none) or more, not {settings.samples}")
    if settings.values.get("sample_tokens", 1) < 1:
        raise UsageError(f"--sample-tokens: at least 1, not {settings.sample_tokens}; --samples 0 leaves them out")
    if not 0 <= settings.values.get("imitation_conditioned", 0) <= 1:
        raise UsageError(f"--imitation-conditioned: a share between 0 and 1, not {settings.imitation_conditioned}")


def objectives_of(settings: Settings) -> list[str]:
    """The objectives that are trained: those of the file, with "overall" before them if asked for."""
    named = list(check_objectives(settings.objectives))
    return with_overall(named) if settings.overall else named


def strategy_of(settings: Settings) -> str:
    """Which responses are compared; a number of pairs per prompt alone chooses among all."""
    asked = settings.pairs_per_prompt is not None and "pairs" not in settings.given
    return "all" if asked else settings.pairs


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


def read(settings: Settings, **options: Any) -> Inputs:
    return read_inputs(
        settings.data,
        objectives=settings.objectives,
        scales=read_scales(settings.scales),
        format=settings.format,
        strategy=strategy_of(settings),
        pairs_per_prompt=settings.pairs_per_prompt,
        orientation=settings.orientation,
        overall=settings.overall,
        score_weights=read_score_weights(settings.score_weights),
        **options,
    )


def quiet_libraries(settings: Settings) -> None:
    """Other libraries' progress bars and notices: off, unless errors are being looked for."""
    import transformers

    if not settings.debug:
        transformers.logging.set_verbosity_error()
        transformers.logging.disable_progress_bar()


def report(metrics: Mapping[str, Any], objectives: Sequence[str], folder: Any, console: Console) -> None:
    from amopo.report.picture import draw, margin_curves
    from amopo.report.table import show

    preferences = metrics.get("preferences")
    if preferences is not None:
        sections = preference_sections(preferences["before"], preferences["after"], objectives)
        console.say()
        if not console.quiet:
            show(sections)
        if importlib.util.find_spec("matplotlib") is not None:
            curves = margin_curves(metrics["log_history"], objectives)
            draw(folder / "picture.png", sections[0], curves, title="amopo train", unit="accuracy", limits=(0, 1))
    console.say(f"saved in {folder}")
