"""The token budget that is lowered before the first step, and kept when the run goes on.

Contract
--------
`fit_budget(trainer)` (setting `auto_budget`) runs forward and backward of this rank's largest batch, beside what else
stands in a step, and halves `tokens_per_batch` on all ranks, with a warning, until it fits. It happens before
the first step, and never later: a budget that changed in mid-run would change what is trained. Random numbers that the
attempt draws are given back. Sharded models raise, since a rank that fails alone would leave the others waiting.

`keep_budget(args, recorded)`: a run that is resumed with `auto_budget` goes on with the budget that its record holds.
"""

from __future__ import annotations

import gc
import logging
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor

from amopo.memory.exhausted import is_out_of_memory
from amopo.trainer.out_of_memory import explained

logger = logging.getLogger(__name__)


def fit_budget(trainer: Any) -> None:
    """Halve `tokens_per_batch` until the largest batch runs.

    Raises:
        ValueError: a sharded model. torch.OutOfMemoryError: the smallest budget that holds the longest sample does not
        run either.
    """
    if trainer.is_deepspeed_enabled or trainer.is_fsdp_enabled:
        raise ValueError(
            "auto_budget tries batches on each rank alone, which a sharded model cannot; set tokens_per_batch by "
            "`amopo memory plan` and leave auto_budget out"
        )
    while True:
        error = _tried(trainer)
        failed = torch.tensor(int(error is not None), device=trainer.args.device)
        if int(trainer._all_reduce(failed)) == 0:
            return
        smaller = trainer.args.tokens_per_batch // 2
        if smaller < trainer.longest_sample:
            reason = error or RuntimeError("another rank ran out of memory")
            raise explained(reason, trainer) from error
        logger.warning(
            "auto_budget: a row of tokens_per_batch=%d does not fit; going on with tokens_per_batch=%d",
            trainer.args.tokens_per_batch, smaller,
        )  # fmt: skip
        trainer.args.tokens_per_batch = smaller
        trainer.plan_batches()


def keep_budget(args: Any, recorded: Mapping[str, Any] | None) -> None:
    """Take over a recorded budget that `fit_budget` can have made of the given one; any other difference stays one."""
    budget = (recorded or {}).get("tokens_per_batch")
    if not isinstance(budget, int) or not 0 < budget < args.tokens_per_batch:
        return
    halved = args.tokens_per_batch
    while halved > budget:
        halved //= 2
    if halved == budget:
        logger.warning(
            "auto_budget: the run that goes on has lowered tokens_per_batch from %d to %d, and keeps that",
            args.tokens_per_batch, budget,
        )  # fmt: skip
        args.tokens_per_batch = budget


def set_aside_bytes(trained: Iterable[Tensor], *, ranks: int) -> int:
    """What stands beside weights and gradients in a step: AdamW's two moments, and DDP's buckets of all gradients."""
    return sum(p.nbytes for p in trained) * (2 + (ranks > 1))


def _tried(trainer: Any) -> BaseException | None:
    """Forward and backward of the largest batch, as in a step's last micro-batch; the error if it found no memory."""
    device = trainer.args.device
    reserved: Tensor | None = None
    inputs: dict[str, Any] | None = None
    result: Any = None
    mode = trainer.model.training
    try:
        trained = [p for p in trainer.model.parameters() if p.requires_grad]
        size = set_aside_bytes(trained, ranks=trainer.args.world_size)
        reserved = torch.empty(size, dtype=torch.uint8, device=device)
        if trainer.args.gradient_accumulation_steps > 1:  # all gradients stand already when a second one begins
            for parameter in trained:
                parameter.grad = torch.zeros_like(parameter)
        inputs = trainer._prepare_inputs(trainer.largest_batch())
        trainer.running_layout = inputs["amopo_layout"]
        trainer.model.train()
        devices = [device] if device.type == "cuda" else []
        with torch.random.fork_rng(devices), trainer.accelerator.autocast():
            result = trainer._run(trainer.model, inputs, step=0)
            result.loss.backward()
        return None
    except RuntimeError as error:
        if not is_out_of_memory(error):
            raise
        # Its traceback holds the frames, and so the tensors, of the attempt.
        return error.with_traceback(None)
    finally:
        reserved = inputs = result = None  # noqa: F841
        trainer.model.zero_grad(set_to_none=True)
        trainer.model.train(mode)
        gc.collect()
        if device.type == "cuda":
            torch.cuda.empty_cache()
