"""amopo with each of its backends, in the task of the per-token peers and in that of the pairwise ones.

Where the default byte budget does not hold all of G, the backward rebuilds what was spilled: 8NVH instead of 6NVH at
most. There a second line, `amopo_<backend>_kept`, has the smallest budget that holds it, with the bytes beside it.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from amopo_kernels import backend, linear_logprobs, workspace_bytes
from amopo_kernels.products import choose_products
from amopo_kernels.workspace import default_budget, plan_workspace
from bench.common.cases import HeadCase
from bench.common.providers import (
    SIMPO,
    NotMeasured,
    Outcome,
    backend_missing,
    fp32_is_no_gain,
    register,
    scalar_task,
    tokens_task,
    using_backend,
)

_BUDGET_STEP = 64 << 20


def keeps_all(case: HeadCase, budget: int | None) -> bool:
    """Whether a full head's forward keeps G of all rows within the budget (None: the default)."""
    rows, hidden, vocab = case.shape.rows, case.shape.hidden, case.shape.vocab
    plan = plan_workspace(
        (rows, hidden, vocab), choose_products(case.dtype, case.device, None), budget=budget, need_hidden_grad=True,
        need_weight_grad=True, device_type=case.device.type,
    )  # fmt: skip
    return plan.kept_rows == rows


def kept_budget(case: HeadCase) -> int:
    """The smallest multiple of 64 MiB, from the default budget on, with which all of G is kept."""
    budget = default_budget(case.shape.hidden, case.shape.vocab, frozen_head=False)
    budget = -(-budget // _BUDGET_STEP) * _BUDGET_STEP
    while not keeps_all(case, budget):
        budget += _BUDGET_STEP
    return budget


def budget_details(case: HeadCase, frozen: bool, budget: int | None = None) -> dict[str, int | None]:
    sizes = (case.shape.rows, case.shape.hidden, case.shape.vocab)
    promised = workspace_bytes(sizes, case.dtype, budget, frozen, device=case.device)
    return {"budget_bytes": budget, "workspace_bytes": promised}


def _register_amopo(name: str) -> None:
    def missing(case: HeadCase) -> str | None:
        return backend_missing(name, case.device)

    def missing_input_logits(case: HeadCase) -> str | None:
        if case.dtype == torch.float32 or fp32_is_no_gain(case) is None:
            return "logits in the input dtype are no gain here"
        if case.device.type == "cpu":
            return "they are the default here"
        return backend_missing(name, case.device)

    def missing_kept(case: HeadCase) -> str | None:
        return missing(case) or ("the default keeps all of G here" if keeps_all(case, None) else None)

    settings = f"AMOPO_BACKEND={name}, defaults"

    @register(f"amopo_{name}", "ours", "tokens", settings, missing, details=budget_details)
    def _(case, frozen):
        def op(hidden, weight):
            return linear_logprobs(hidden, weight, case.targets)

        return in_backend(name, tokens_task(op, case, frozen))

    settings = f"AMOPO_BACKEND={name}, the smallest budget that holds all of G"

    def kept_details(case: HeadCase, frozen: bool) -> dict[str, int | None]:
        return budget_details(case, frozen, kept_budget(case))

    @register(f"amopo_{name}_kept", "ours", "tokens", settings, missing_kept, details=kept_details)
    def _(case, frozen):
        if frozen:
            raise NotMeasured("a frozen head drops G chunk by chunk: there is nothing to keep")
        budget = kept_budget(case)

        def op(hidden, weight):
            return linear_logprobs(hidden, weight, case.targets, budget=budget)

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
