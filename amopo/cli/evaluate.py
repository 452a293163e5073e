"""`amopo eval`: what a model does, without training it.

Margins and accuracies on the pairs of a preference file, per objective. With `--generate`, for data that carries
verifiable tasks (such as `runs/demo/data/eval.jsonl`): responses to every prompt, plain and with each objective's
template, scored by program; that keeps all prompts and responses in memory. `--out FILE` writes all numbers as JSON.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from amopo.cli.console import Console, quiet_libraries
from amopo.cli.errors import UsageError
from amopo.cli.inputs import Inputs
from amopo.cli.models import load, need
from amopo.cli.options import Option, Settings
from amopo.cli.preference_file import check_choices, data_options, objectives_of, read
from amopo.cli.tokens import tokenize
from amopo.data.verifiable import OBJECTIVES, task_from_record
from amopo.packing.trie import SHARING
from amopo.trainer.scratch import parse_scratch

DESCRIPTION = "Margins and accuracies of a model on a preference file; with --generate, scores of what it writes."


def options() -> list[Option]:
    need("transformers", "hf")
    return [
        *data_options(),
        Option("beta", float, "scale of the reward", default=0.8),
        Option("tokens_per_batch", int, "most tokens of a batch, which holds whole samples", default=8192),
        Option("sharing", str, f"what sequences share: {', '.join(SHARING)}", default="pair", important=False),
        Option("generate", bool, "also generate, for data with verifiable tasks", default=False),
        Option("max_new_tokens", int, "longest generated response", default=64),
        Option("temperature", float, "0: the likeliest response; 1: as the model draws", default=1.0),
        Option("seed", int, "seed of the sampling", default=0),
        Option("out", str | None, "write the numbers to this JSON file", default=None, metavar="FILE"),
    ]


def run(settings: Settings) -> None:
    console = Console(quiet=settings.quiet)
    check_choices(settings)
    if parse_scratch(settings.model) is not None:
        raise UsageError(f"--model: {settings.model} names an untrained model; give a folder or a Hub name")
    with console.busy("reading") as count:
        inputs = read(settings, eval_fraction=0.0, on_rows=count)
        if settings.generate:
            _check_tasks(settings, inputs)
    if settings.out is not None:
        _check_parent(settings.out)
    for line in (*inputs.left_out, f"data: {inputs.train.report}"):
        console.say(line)
    quiet_libraries(settings)
    with console.busy("loading the model"):
        model, tokenizer = load(settings.model, dtype=settings.dtype)
    found = {
        "model": settings.model,
        "data": settings.data,
        "preferences": _preferences(settings, inputs, model, tokenizer, console),
    }
    _print_preferences(found["preferences"], objectives_of(settings))
    if settings.generate:
        found["generation"] = _generation(settings, inputs, model, tokenizer, console)
        _print_generation(found["generation"], settings.objectives)
    if settings.out is not None:
        Path(settings.out).write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")
        console.say(f"written to {settings.out}")


def _check_tasks(settings: Settings, inputs: Inputs) -> None:
    for name in settings.objectives:
        if name not in OBJECTIVES:
            raise UsageError(f"--generate: {name!r} is not scored by program; those are: {', '.join(OBJECTIVES)}")
    for record in inputs.train.records:
        task_from_record(record)


def _check_parent(path: str) -> None:
    if not Path(path).absolute().parent.is_dir():
        raise UsageError(f"--out: the folder of {path} does not exist")


def _preferences(settings: Settings, inputs: Inputs, model: Any, tokenizer: Any, console: Console) -> dict[str, float]:
    from amopo.cli.callback import make_callback
    from amopo.evaluation.preferences import preference_metrics

    samples, _ = tokenize(
        inputs.train.pairs,
        tokenizer,
        console,
        cache=not settings.no_cache,
        objectives=objectives_of(settings),
        scales=inputs.scales,
        template=settings.template,
        max_prompt_length=settings.max_prompt_length,
        max_response_length=settings.max_response_length,
    )
    return preference_metrics(
        model,
        samples,
        objectives=objectives_of(settings),
        orientation=settings.orientation,
        beta=settings.beta,
        tokens_per_batch=settings.tokens_per_batch,
        sharing=settings.sharing,
        callbacks=[make_callback(console)],
    )


def _generation(settings: Settings, inputs: Inputs, model: Any, tokenizer: Any, console: Console) -> dict[str, Any]:
    from amopo.evaluation.tasks import score_generations

    with console.bar("generation") as bar:
        scores = score_generations(
            model,
            tokenizer,
            inputs.train.records,
            objectives=settings.objectives,
            scales=inputs.scales,
            template=settings.template,
            max_prompt_length=settings.max_prompt_length,
            max_new_tokens=settings.max_new_tokens,
            temperature=settings.temperature,
            seed=settings.seed,
            on_batch=bar.update,
        )
    return scores.summary()


def _print_preferences(metrics: dict[str, float], objectives: list[str]) -> None:
    width = max(len(name) for name in [*objectives, "mean"])
    print(f"{'':<{width}}  accuracy   margin")
    for name in [*objectives, "mean"]:
        suffix = "" if name == "mean" else f"/{name}"
        accuracy, margin = metrics[f"rewards/accuracies{suffix}"], metrics[f"rewards/margins{suffix}"]
        print(f"{name:<{width}}  {accuracy:8.3f} {margin:8.3f}")


def _print_generation(summary: dict[str, Any], objectives: list[str]) -> None:
    """One line per variant of the prompt, one column per objective."""
    columns = [*objectives, "mean"]
    width = max(len("prompt"), *(len(variant) for variant in summary))
    print("\n" + "  ".join([f"{'prompt':<{width}}", *(f"{name:>{max(5, len(name))}}" for name in columns)]))
    for variant, scores in summary.items():
        cells = [f"{scores[name]['mean']:>{max(5, len(name))}.2f}" for name in columns]
        print("  ".join([f"{variant:<{width}}", *cells]))
