"""What the others are measured against: the bare products below, plain PyTorch above."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from amopo_kernels import reference
from amopo_kernels.row_pass import RowState, Transform, row_pass
from bench.common.cases import HeadCase
from bench.common.providers import Outcome, compiler_missing, fp32_is_no_gain, register, tokens_task


def stored_g(case: HeadCase) -> Tensor:
    """G `[N, V]` of the case: the floor multiplies the same numbers as everyone (on GPUs, zeros would run faster)."""
    if "g" not in case.cache:
        rows, vocab = case.shape.rows, case.shape.vocab
        g = torch.empty(rows, vocab, dtype=case.dtype, device=case.device)
        chunk = max(1, (256 << 20) // (4 * vocab))
        weight = case.weight.float() if case.device.type == "cpu" else case.weight
        for start in range(0, rows, chunk):
            part = slice(start, min(start + chunk, rows))
            logits = torch.mm(case.hidden[part].to(weight.dtype), weight.t()).float()
            state = RowState.empty(logits.shape[0], torch.float32, case.device)
            row_pass(
                logits, case.targets[part], None, Transform(), logp=torch.empty_like(state.mass), state=state,
                out=g[part], half_range=case.dtype == torch.float16, block_rows=chunk,
            )  # fmt: skip
        case.cache["g"] = g
    return case.cache["g"]


def bare_products(case: HeadCase, frozen: bool, dtype: torch.dtype) -> Callable[[], Outcome]:
    """logits = h W^T, dH = G W, dW = G^T h over all rows at once, into memory that is there already."""
    hidden, weight, g = case.hidden.to(dtype), case.weight.to(dtype), stored_g(case).to(dtype)
    logits, grad_hidden = torch.empty_like(g), torch.empty_like(hidden)
    grad_weight = None if frozen else torch.empty_like(weight)

    def run() -> Outcome:
        torch.mm(hidden, weight.t(), out=logits)
        torch.mm(g, weight, out=grad_hidden)
        if not frozen:
            torch.mm(g.t(), hidden, out=grad_weight)
        return Outcome(None)

    return run


@register("products", "floor", "products", "torch.mm over all rows at once, outputs preallocated, in the tested dtype")
def _(case, frozen):
    return bare_products(case, frozen, case.dtype)


@register("products_fp32", "floor", "products", "the same in fp32, which this CPU multiplies faster", fp32_is_no_gain)
def _(case, frozen):
    return bare_products(case, frozen, torch.float32)


@register("naive_fp32_logits", "scale", "tokens", "logits.float(), log_softmax, gather: the released AMoPO arithmetic")
def _(case, frozen):
    return tokens_task(lambda h, w: _naive(h, w, case.targets), case, frozen)


def _naive(hidden: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
    logits = F.linear(hidden, weight).float()
    return F.log_softmax(logits, dim=-1).gather(1, targets[:, None])[:, 0]


@register(
    "naive_compiled", "peer", "tokens", "torch.compile of naive_fp32_logits",
    lambda case: compiler_missing(case.device), compiled=True,
)  # fmt: skip
def _(case, frozen):
    compiled = torch.compile(_naive, dynamic=False)
    return tokens_task(lambda h, w: compiled(h, w, case.targets), case, frozen)


@register("plain_torch", "scale", "tokens", "log_softmax and gather in the tested dtype (amopo_kernels.reference)")
def _(case, frozen):
    return tokens_task(lambda h, w: reference.linear_logprobs(h, w, case.targets), case, frozen)


@register("plain_torch_fp32", "scale", "tokens", "the same on fp32 copies of hidden states and weight", fp32_is_no_gain)
def _(case, frozen):
    return tokens_task(lambda h, w: reference.linear_logprobs(h.float(), w.float(), case.targets), case, frozen)
