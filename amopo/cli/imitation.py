"""How a model made from scratch begins: by imitating the training responses, all of them.

Contract: `imitate_first(job, model, tokenizer, console)` trains the model in place on demonstrations of
`scratch_records(job)` (`amopo.trainer.imitation`), keeps it in `imitation/` of the run's folder, from where a resumed
run takes it, and returns what `metrics.json` says of it. `Imitation` holds its settings.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from amopo.cli.console import Console, is_main_process
from amopo.cli.scratch import IMITATION_FOLDER, scratch_records

if TYPE_CHECKING:
    from amopo.cli.job import Job


@dataclass
class Imitation:
    """How a model made from scratch learns to imitate."""

    epochs: float = 3.0
    learning_rate: float = 2e-3
    tokens_per_batch: int = 4096
    conditioned: float = 0.5


def imitate_first(job: Job, model: Any, tokenizer: Any, console: Console) -> dict[str, Any]:
    """Trains a model from scratch to imitate the training responses, and keeps it in `imitation/`."""
    from amopo.trainer.demonstrations import demonstrations
    from amopo.trainer.imitation import imitate

    options = job.imitation
    with console.stage("imitation"):
        with console.busy("reading what to imitate"):
            records = scratch_records(job)
            rows = demonstrations(
                records,
                tokenizer,
                objectives=job.args.objectives,
                scales=job.inputs.scales,
                template=job.template,
                conditioned=options.conditioned,
                max_prompt_length=job.max_prompt_length,
                max_response_length=job.max_response_length,
                seed=job.args.seed,
            )
        with console.bar("imitation") as bar:
            result = imitate(
                model,
                rows,
                epochs=options.epochs,
                token_budget=max(options.tokens_per_batch, max(map(len, rows))),
                peak_lr=options.learning_rate,
                pad=tokenizer.pad_token_id,
                seed=job.args.seed,
                on_step=lambda step, total, loss: bar.update(step, total, "" if loss is None else f"loss {loss:.3f}"),
            )
    if is_main_process():
        folder = job.folder / IMITATION_FOLDER
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
    return {
        "demonstrations": len(rows),
        "prompts": len(records),
        **dataclasses.asdict(options),
        **dataclasses.asdict(result),
    }
