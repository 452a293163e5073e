"""amopo with each of its backends, in the task of the per-token peers and in that of the pairwise ones."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from amopo_kernels import backend, linear_logprobs
from bench.common.cases import HeadCase
from bench.common.providers import (
    SIMPO,
    Outcome,
    backend_missing,
    fp32_is_no_gain,
    register,
    scalar_task,
    tokens_task,
    using_backend,
)


def _register_amopo(name: str) -> None:
    def missing(case: HeadCase) -> str | None:
        return backend_missing(name, case.device)

    def missing_input_logits(case: HeadCase) -> str | None:
        if case.dtype == torch.float32 or fp32_is_no_gain(case) is None:
            return "logits in the input dtype are no gain here"
        if case.device.type == "cpu":
            return "they are the default here"
        return backend_missing(name, case.device)

    @register(f"amopo_{name}", "ours", "tokens", f"AMOPO_BACKEND={name}, defaults", missing)
    def _(case, frozen):
        def op(hidden, weight):
            return linear_logprobs(hidden, weight, case.targets)

        return in_backend(name, tokens_task(op, case, frozen))

    settings = f'AMOPO_BACKEND={name}, logits_dtype="input"'

    @register(f"amopo_{name}_input_logits", "ours", "tokens", settings, missing_input_logits)
    def _(case, frozen):
        def op(hidden, weight):
            return linear_logprobs(hidden, weight, case.targets, logits_dtype="input")

        return in_backend(name, tokens_task(op, case, frozen))

    settings = f"AMOPO_BACKEND={name}, fused_loss with K = 1 and uniform weights: SimPO's loss"

    @register(f"amopo_{name}_simpo", "ours", "pairs", settings, missing)
    def _(case, frozen):
        return in_backend(name, scalar_task(amopo_simpo(case), case, frozen))


def in_backend(name: str, function: Callable[[], Outcome]) -> Callable[[], Outcome]:
    def run() -> Outcome:
        with using_backend(name):
            return function()

    return run


def packed_layout(case: HeadCase, num_objectives: int = 1):
    """The layout of the case's sequences, (sample, objective, chosen | rejected), on its device."""
    from amopo.packing.layout import TreeLayout

    count, rows = case.sequences, case.shape.rows
    edges = torch.arange(0, rows + 1, case.length)
    return TreeLayout(
        num_samples=count // (2 * num_objectives), num_objectives=num_objectives, row_index=torch.arange(rows),
        row_target=case.targets.cpu(), fan_out=None, offsets=edges, max_target=case.shape.vocab - 1, num_tokens=rows,
    ).to(case.device)  # fmt: skip


def amopo_simpo(case: HeadCase) -> Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]:
    from amopo.fused_loss import fused_loss

    layout = packed_layout(case)

    def op(hidden, weight):
        result = fused_loss(hidden, weight, layout=layout, weights="uniform", step=0, **SIMPO)
        return result.loss, (result.sum_logps / result.lengths).flatten()

    return op


for _name in backend.BACKENDS[::-1]:
    _register_amopo(_name)
