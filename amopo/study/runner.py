"""Runs a study: for every seed one start, then every method from it.

Contract
--------
`run_study(study, seeds=..., folder=..., console=...)` returns the results by seed and method, the imitation start
included. What stands in the folder already is taken from there; a study that was stopped goes on with the first
result that is missing. The start of a seed is made once, kept in `seed-S/imitation`, and loaded anew for each method.

A method trains on the same training pairs with the same seed, in batches of the same number of pairs. Nothing of its
model is kept but what was measured. Times are of the processor, so that a machine with other work says the same.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from amopo.cli.callback import make_callback
from amopo.cli.console import Console
from amopo.cli.imitation import Imitation, imitate_first
from amopo.cli.inputs import Inputs
from amopo.cli.job import Job, prepare_model
from amopo.cli.models import load
from amopo.cli.scratch import IMITATION_FOLDER
from amopo.evaluation.preferences import silence
from amopo.packing import TokenizedSample
from amopo.packing.pack import packed_length
from amopo.study.base import Results, Study
from amopo.study.measure import tokenize
from amopo.study.methods import METHODS, START, TITLES, Method, swap_at_random
from amopo.study.settings import TRAINING
from amopo.study.store import Store


def run_study(
    study: Study, *, seeds: Sequence[int], folder: Path, console: Console, methods: Sequence[Method] = METHODS
) -> Results:
    store = Store(folder, study.fingerprint())
    names = [START, *(method.name for method in methods)]
    # All of them first: a result of other settings should show before an hour of work.
    missing = {seed: [name for name in names if store.load(seed, name) is None] for seed in seeds}
    done = sum(len(names) - len(left) for left in missing.values())
    if done:
        console.say(f"{done} of {len(names) * len(seeds)} results are there already")
    for seed, left in missing.items():
        if left:
            _run_seed(study, seed, [method for method in methods if method.name in left], store, console)
    return {seed: {name: store.load(seed, name) for name in names} for seed in seeds}


def _run_seed(study: Study, seed: int, methods: Sequence[Method], store: Store, console: Console) -> None:
    folder = store.seed_folder(seed)
    folder.mkdir(parents=True, exist_ok=True)
    inputs = study.read(folder, seed)
    console.say(f"seed {seed}: {inputs.train.report}; held out: {inputs.evaluation.report}")
    if store.load(seed, START) is None:
        _make_start(study, seed, inputs, store, console)
    for method in methods:
        console.say(f"seed {seed}: {method.title}")
        began = time.process_time()
        model, tokenizer = load(str((folder / IMITATION_FOLDER).absolute()))
        log = _train(study, method, seed, model, tokenizer, inputs, console)
        trained = time.process_time() - began
        found = _measure(study, seed, model, tokenizer, inputs, console)
        store.save(seed, method.name, {**found, "log": log, "train_cpu_seconds": round(trained, 1)})


def _make_start(study: Study, seed: int, inputs: Inputs, store: Store, console: Console) -> None:
    from amopo.trainer.config import AMoPOConfig

    console.say(f"seed {seed}: {TITLES[START]}")
    settings = study.settings
    args = AMoPOConfig(
        output_dir=str(store.seed_folder(seed)),
        objectives=list(study.objectives),
        seed=seed,
        use_cpu=True,
        report_to="none",
    )
    job = Job(
        command="study",
        model=settings.model,
        inputs=inputs,
        args=args,
        template=study.template,
        max_prompt_length=settings.max_prompt_length,
        max_response_length=settings.max_response_length,
        imitation=Imitation(
            epochs=settings.imitation_epochs,
            learning_rate=settings.imitation_learning_rate,
            tokens_per_batch=settings.imitation_tokens,
        ),
    )
    began = time.process_time()
    model, tokenizer = prepare_model(job, console)
    imitation = imitate_first(job, model, tokenizer, console)
    trained = time.process_time() - began
    found = _measure(study, seed, model, tokenizer, inputs, console)
    parameters = sum(parameter.numel() for parameter in model.parameters())
    store.save(
        seed,
        START,
        {
            **found,
            "imitation": imitation,
            "parameters": parameters,
            "data": {"training": str(inputs.train.report), "held out": str(inputs.evaluation.report)},
            "train_cpu_seconds": round(trained, 1),
        },
    )


def training_samples(
    study: Study, method: Method, tokenizer: Any, inputs: Inputs, *, seed: int
) -> list[TokenizedSample]:
    """The training pairs as this method sees them, in the same order for all; as many as fill whole batches."""
    samples = tokenize(
        inputs.train.pairs,
        tokenizer,
        objectives=study.objectives,
        scales=inputs.scales,
        template=study.template,
        max_prompt_length=study.settings.max_prompt_length,
        max_response_length=study.settings.max_response_length,
        plain=method.plain,
    )
    samples = samples[: len(samples) - len(samples) % study.settings.pairs_per_batch]
    return swap_at_random(samples, seed=seed) if method.swapped else samples


def _train(
    study: Study, method: Method, seed: int, model: Any, tokenizer: Any, inputs: Inputs, console: Console
) -> list[dict[str, Any]]:
    """Trains the model in place; the trainer's log."""
    from amopo.trainer.config import AMoPOConfig
    from amopo.trainer.trainer import AMoPOTrainer

    settings = study.settings
    samples = training_samples(study, method, tokenizer, inputs, seed=seed)
    longest = max(packed_length(sample, sharing=study.sharing) for sample in samples)
    with tempfile.TemporaryDirectory() as scratch:
        args = AMoPOConfig(
            output_dir=scratch,
            objectives=["overall"] if method.plain else list(study.objectives),
            objective=method.objective,
            weights=method.weights,
            beta=settings.beta,
            gamma=settings.gamma,
            learning_rate=settings.learning_rate,
            **TRAINING,
            warmup_steps=settings.warmup_steps,
            max_steps=settings.steps,
            # The number of pairs is what limits a batch, so that a step means the same for every method.
            max_samples_per_batch=settings.pairs_per_batch,
            tokens_per_batch=settings.pairs_per_batch * longest,
            gradient_accumulation_steps=settings.batches_per_step,
            sharing=study.sharing,
            seed=seed,
            use_cpu=True,
            report_to="none",
            save_strategy="no",
            logging_steps=0.1,
        )
        args.disable_tqdm = True
        trainer = AMoPOTrainer(model, args, train_dataset=samples, callbacks=[make_callback(console)])
        silence(trainer)
        try:
            trainer.train()
        finally:
            trainer.packed_forward.remove()
        return [row for row in trainer.state.log_history if "loss" in row]


def _measure(study: Study, seed: int, model: Any, tokenizer: Any, inputs: Inputs, console: Console) -> dict[str, Any]:
    began = time.process_time()
    with console.bar("measuring") as bar:
        found = study.measure(model, tokenizer, inputs, seed, bar.update)
    return {**found, "measure_cpu_seconds": round(time.process_time() - began, 1)}
