"""LLaMA-Factory's DPO workflow, with AMoPO's collator and trainer where AMoPO is asked for.

`run_dpo` has the signature of LLaMA-Factory's and takes its place in `llamafactory.train.tuner`. What would be ignored
or wrong is refused here, before the model is loaded.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterator
from typing import Any

from llamafactory.train.dpo import trainer as trainer_module
from llamafactory.train.dpo import workflow as host

from amopo.integrations.llamafactory.arguments import AMOPO, amopo_settings
from amopo.integrations.llamafactory.collator import AMoPODataCollator
from amopo.integrations.llamafactory.trainer import AMoPODPOTrainer

_run_dpo = host.run_dpo


def run_dpo(
    model_args: Any, data_args: Any, training_args: Any, finetuning_args: Any, callbacks: list[Any] | None = None
) -> None:
    """LLaMA-Factory's `run_dpo`, for its own losses and for AMoPO."""
    if model_args.use_unsloth:
        raise ValueError("use_unsloth rewrites the model's forward, which the fused path takes; set use_unsloth: false")
    if finetuning_args.pref_loss != AMOPO:
        _run_dpo(model_args, data_args, training_args, finetuning_args, callbacks)
        return
    settings = amopo_settings(finetuning_args)
    if not data_args.ignore_pad_token_for_loss:
        raise ValueError("ignore_pad_token_for_loss: false would count padding as response; leave it out")
    if finetuning_args.include_effective_tokens_per_second:
        raise ValueError("include_effective_tokens_per_second counts pairs, which AMoPO data are not; leave it out")
    # The loader hands data_args to converter and processor, and nothing else of ours.
    data_args.amopo = settings
    collator = functools.partial(AMoPODataCollator, amopo=settings)
    with (
        _replaced(host, "PairwiseDataCollatorWithPadding", collator),
        _replaced(trainer_module, "CustomDPOTrainer", AMoPODPOTrainer),
    ):
        _run_dpo(model_args, data_args, training_args, finetuning_args, callbacks)


@contextlib.contextmanager
def _replaced(module: Any, name: str, value: Any) -> Iterator[None]:
    before = getattr(module, name)
    setattr(module, name, value)
    try:
        yield
    finally:
        setattr(module, name, before)
