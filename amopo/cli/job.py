"""One training run, from records to a saved model with its measurements.

Contract
--------
`run_job(job, console)` imitates first if the model is made from scratch, measures, trains, measures again, saves. It
returns the metrics that it also writes to `metrics.json` in the output directory: settings, versions, what was read,
preference metrics before and after, the log of the training, seconds. What is known before training is written then,
with "finished": false, so that a run that is stopped can be reported. `job.measure(model, tokenizer)` may add
measurements of its own, under the key "generation"; `job.samples` held-out prompts are answered before and after.
Where `job.go_on` says how to go on, Ctrl-C saves a checkpoint (`amopo.cli.stop`), elsewhere it ends the run at once.

Records and pairs may be streams (`amopo.data.stream`): with `cache=True` their tokens are in files, and memory holds a
few bytes per pair. Without, samples are a list. A model from scratch gets its tokenizer, and what it imitates, from at
most so many training prompts, drawn by the seed (`amopo.cli.scratch`); that is said where there are more.

Everything that can be wrong with the input raises before training.
"""

from __future__ import annotations

import dataclasses
import itertools
import signal
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from amopo.cli.console import Console, is_main_process
from amopo.cli.env import machine, versions
from amopo.cli.errors import UsageError
from amopo.cli.imitation import Imitation, imitate_first
from amopo.cli.inputs import Inputs
from amopo.cli.launch import is_launched
from amopo.cli.metrics import about_model, about_run, write_metrics
from amopo.cli.models import add_lora, load, weights_line
from amopo.cli.output_dir import clear_checkpoints
from amopo.cli.scratch import from_scratch
from amopo.cli.stop import Stopping
from amopo.cli.stop_signals import WATCHED, StopSignals
from amopo.cli.tokens import tokenize
from amopo.data import Pair, TokenizationReport
from amopo.data.stream import Reiterable
from amopo.evaluation.preferences import silence, without_prefix
from amopo.evaluation.samples import sample_responses
from amopo.packing import TokenDataset, TokenizedSample
from amopo.trainer.identity import numel
from amopo.trainer.scratch import parse_scratch
from amopo_kernels.workspace import workspace_bytes


@dataclass
class Job:
    command: str
    model: str
    inputs: Inputs
    args: Any  # AMoPOConfig
    template: str = "rubric"
    max_prompt_length: int = 512
    max_response_length: int = 512
    dtype: str = "float32"
    resume: str | bool | None = None
    lora_r: int | None = None
    lora_alpha: float | None = None
    cache: bool = False
    imitation: Imitation = dataclasses.field(default_factory=Imitation)
    samples: int = 0
    sample_tokens: int = 128
    measure: Callable[[Any, Any], Mapping[str, Any]] | None = None
    go_on: str | None = None  # the command that resumes this run
    replaces: bool = False  # whatever run stands in the folder
    has_begun: bool = False

    @property
    def folder(self) -> Path:
        return Path(self.args.output_dir)


def run_job(job: Job, console: Console) -> dict[str, Any]:
    with console.stage("load"), console.busy("loading the model"):
        model, tokenizer = prepare_model(job, console)
    train, report = tokenize_for(job, job.inputs.train.pairs, tokenizer, console)
    console.say(f"training tokens: {report}")
    data = {"training": {"pairs": job.inputs.train.report, "tokens": report}}
    evaluation: Sequence[TokenizedSample] = []
    if job.inputs.evaluation.pairs:
        evaluation, report = tokenize_for(job, job.inputs.evaluation.pairs, tokenizer, console)
        console.say(f"evaluation tokens: {report}")
        data["evaluation"] = {"pairs": job.inputs.evaluation.report, "tokens": report}
    trainer = _make_trainer(job, model, tokenizer, train, evaluation, console)
    metrics: dict[str, Any] = {
        "command": job.command,
        "versions": versions(),
        "machine": machine(),
        "settings": about_run(job),
        "model": about_model(job, model, tokenizer),
        "data": data,
    }
    if parse_scratch(job.model) is not None and not job.resume:
        metrics["imitation"] = imitate_first(job, trainer.model, tokenizer, console)
    before = _measure(job, trainer, tokenizer, console, "before")
    unfinished = {"finished": False} | {name: {"before": found} for name, found in before.items()}
    write_metrics(job.folder, metrics | unfinished)
    if job.replaces and not job.resume and is_main_process():
        clear_checkpoints(job.folder)
    job.has_begun = True
    with console.stage("train"):
        train_until_stopped(job, trainer)
    after = _measure(job, trainer, tokenizer, console, "after")
    if "preferences" in after and "preferences" not in before:
        before["preferences"] = _evaluated_on_start(trainer)
    with console.stage("save"), console.busy("saving"):
        trainer.save_model()
    metrics["finished"] = True
    metrics |= {name: {"before": found, "after": after[name]} for name, found in before.items()}
    metrics["log_history"] = trainer.state.log_history
    metrics["seconds"] = {name: round(seconds, 1) for name, seconds in console.seconds.items()}
    write_metrics(job.folder, metrics)
    return metrics


def train_until_stopped(job: Job, trainer: Any) -> None:
    """Trains; raises KeyboardInterrupt once a run that was asked to stop has saved its checkpoint."""
    if job.go_on is None:
        trainer.train(resume_from_checkpoint=job.resume or None)
        return
    with StopSignals((signal.SIGINT,) if is_launched() else WATCHED) as signals:
        stopping = Stopping(signals)
        trainer.add_callback(stopping.callback())
        trainer.train(resume_from_checkpoint=job.resume or None)
        stopping.finish(job.folder, job.go_on, save_only_model=job.args.save_only_model)


def prepare_model(job: Job, console: Console) -> tuple[Any, Any]:
    """The model as it stands before any training, its tokenizer."""
    size = parse_scratch(job.model)
    if size is None:
        model, tokenizer = load(job.model, dtype=job.dtype)
    else:
        model, tokenizer, note = from_scratch(job, size)
        console.say(note)
    if job.lora_r is not None:
        torch.manual_seed(job.args.seed)  # the adapters' first weights are drawn: the same in every run, on every rank
        model = add_lora(model, rank=job.lora_r, alpha=job.lora_alpha)
    parameters = sum(map(numel, model.parameters()))
    console.say(f"model: {job.model}, {parameters / 1e6:.2f}M parameters, {len(tokenizer)} tokens")
    if job.lora_r is not None:
        console.say(weights_line(model))
    return model, tokenizer


def tokenize_for(
    job: Job, pairs: Reiterable[Pair], tokenizer: Any, console: Console
) -> tuple[Sequence[TokenizedSample], TokenizationReport]:
    """`tokenize` with the job's settings."""
    return tokenize(
        pairs,
        tokenizer,
        console,
        cache=job.cache,
        objectives=job.args.objectives,
        scales=job.inputs.scales,
        template=job.template,
        max_prompt_length=job.max_prompt_length,
        max_response_length=job.max_response_length,
    )


def _make_trainer(
    job: Job,
    model: Any,
    tokenizer: Any,
    train: Sequence[TokenizedSample],
    evaluation: Sequence[TokenizedSample],
    console: Console,
) -> Any:
    from amopo.cli.callback import make_callback
    from amopo.trainer.trainer import AMoPOTrainer

    if job.args.head_budget is not None:
        _check_budget(job, model, train)
    trainer = AMoPOTrainer(
        model,
        job.args,
        train_dataset=train,
        eval_dataset=evaluation if len(evaluation) else None,
        processing_class=tokenizer,
        callbacks=[make_callback(console)],
    )
    silence(trainer)
    return trainer


def _check_budget(job: Job, model: Any, samples: Sequence[TokenizedSample]) -> None:
    """A budget that cannot hold the largest sample would otherwise show only when that sample comes up."""
    weight = model.get_output_embeddings().weight
    if isinstance(samples, TokenDataset):  # knows it without reading a token
        rows = int(samples.sizes("none").rows.max())
    else:
        rows = max(sample.num_objectives * (len(sample.chosen) + len(sample.rejected)) for sample in samples)
    vocabulary, hidden = getattr(weight, "ds_shape", weight.shape)
    shape = (rows, hidden, vocabulary)
    try:
        workspace_bytes(shape, weight.dtype, job.args.head_budget, device=weight.device)
    except ValueError as error:
        raise UsageError(f"--head-budget: {error}") from None


def _measure(job: Job, trainer: Any, tokenizer: Any, console: Console, when: str) -> dict[str, Any]:
    measured: dict[str, Any] = {}
    if trainer.eval_dataset is not None and trainer.evaluates_after_train_only:
        trainer.args.eval_on_start = True  # the model is sharded, and can be evaluated, inside train()
    elif trainer.eval_dataset is not None:
        with console.stage("evaluation"):
            measured["preferences"] = without_prefix(trainer.evaluate())
            console.say(f"evaluated on held-out pairs, {when} training")
    if job.measure is not None:
        with console.stage("generation"):
            measured["generation"] = job.measure(trainer.model, tokenizer)
    if job.samples and job.inputs.evaluation.records and is_main_process():
        if trainer.is_fsdp_enabled or trainer.is_deepspeed_enabled:
            console.say("no samples: they are not generated from a model that is sharded over devices")
            return measured
        with console.stage("samples"), console.busy("answering sample prompts"):
            measured["samples"] = sample_responses(
                trainer.model,
                tokenizer,
                list(itertools.islice(job.inputs.evaluation.records, job.samples)),
                max_prompt_length=job.max_prompt_length,
                max_new_tokens=min(job.sample_tokens, job.max_response_length),
            )
    return measured


def _evaluated_on_start(trainer: Any) -> Mapping[str, float]:
    entries = [entry for entry in trainer.state.log_history if "eval_loss" in entry]
    return without_prefix(entries[0])
