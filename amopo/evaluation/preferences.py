"""How a model ranks preference pairs.

Contract
--------
`preference_metrics(model, samples, objectives=..., beta=...)` -> metrics by name, exact means over the samples: "loss",
"rewards/margins/<objective>", "rewards/accuracies/<objective>" and the others of `amopo.trainer.metrics`. It is the
trainer's own evaluation, without a run: nothing is written, the model's weights stay as they are.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from typing import Any

from amopo.packing.sample import TokenizedSample
from amopo.packing.stored import TokenDataset

PREFIX = "eval_"


def preference_metrics(
    model: Any,
    samples: Sequence[TokenizedSample],
    *,
    objectives: Sequence[str],
    callbacks: Sequence[Any] = (),
    **settings: Any,
) -> dict[str, float]:
    """`settings` are fields of `AMoPOConfig`, e.g. beta, weights, tokens_per_batch; `callbacks` go to the trainer."""
    from amopo.trainer.config import AMoPOConfig
    from amopo.trainer.trainer import AMoPOTrainer

    with tempfile.TemporaryDirectory() as folder:
        args = AMoPOConfig(output_dir=folder, objectives=list(objectives), report_to="none", **settings)
        args.disable_tqdm = True
        given = samples if isinstance(samples, TokenDataset) else list(samples)
        trainer = AMoPOTrainer(model, args, eval_dataset=given, callbacks=list(callbacks))
        silence(trainer)
        try:
            return without_prefix(trainer.evaluate())
        finally:
            trainer.packed_forward.remove()


def without_prefix(metrics: Mapping[str, float]) -> dict[str, float]:
    """Metrics of an evaluation under the names that training uses; run times are left out."""
    return {
        name.removeprefix(PREFIX): value
        for name, value in metrics.items()
        if name.startswith(PREFIX) and not name.endswith(("_runtime", "_per_second"))
    }


def silence(trainer: Any) -> None:
    """Takes off the callback that prints every log as a dict when there is no progress bar."""
    from transformers import PrinterCallback

    trainer.remove_callback(PrinterCallback)
