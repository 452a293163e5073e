"""Other libraries, each in its documented fastest setting; what is not installed is skipped by name.

Signatures were read from liger-kernel 0.8.5, trl 1.16.0, cut-cross-entropy 25.1.1, quack-kernels 0.6.5, torch 2.13.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable

import torch
import torch.nn.functional as F

from bench.common.cases import HeadCase
from bench.common.providers import SIMPO, Outcome, compiler_missing, register, tokens_task


def needs(*modules: str, cuda: bool = False, capability: tuple[int, int] = (0, 0), compiler: bool = False) -> Callable:
    """A `missing` function: installed modules, a CUDA device of at least some capability, a compiler."""

    def missing(case: HeadCase) -> str | None:
        for module in modules:
            if importlib.util.find_spec(module) is None:
                return f"{module} is not installed"
        if cuda and case.device.type != "cuda":
            return "runs on CUDA only"
        if case.device.type == "cuda" and torch.cuda.get_device_capability(case.device) < capability:
            return f"needs compute capability {capability[0]}.{capability[1]}"
        return compiler_missing(case.device) if compiler else None

    return missing


def mean_task(op: Callable, case: HeadCase, frozen: bool) -> Callable[[], Outcome]:
    def run() -> Outcome:
        hidden, weight = case.leaves(frozen)
        loss = op(hidden, weight)
        return Outcome(loss.detach(), *torch.autograd.grad(loss, (hidden,) if frozen else (hidden, weight)))

    return run


# PyTorch's own --------------------------------------------------------------------------------------------------------


def _torch_missing(case: HeadCase) -> str | None:
    return None if hasattr(F, "linear_cross_entropy") else f"torch {torch.__version__} has no F.linear_cross_entropy"


def _torch_op(case: HeadCase, options) -> Callable:
    return lambda h, w: -F.linear_cross_entropy(h, w, case.targets, reduction="none", options=options)


@register(
    "torch_lce", "peer", "tokens", 'F.linear_cross_entropy(reduction="none"), which stores the logits', _torch_missing
)
def _(case, frozen):
    return tokens_task(_torch_op(case, None), case, frozen)


@register(
    "torch_lce_chunked", "peer", "tokens",
    'F.linear_cross_entropy(reduction="none", options=LinearCrossEntropyOptions())', _torch_missing,
)  # fmt: skip
def _(case, frozen):
    return tokens_task(_torch_op(case, torch.nn.LinearCrossEntropyOptions()), case, frozen)


@register(
    "torch_lce_one_chunk", "peer", "tokens",
    "options=LinearCrossEntropyOptions(batch_chunk_size=N): the fewest launches", _torch_missing,
)  # fmt: skip
def _(case, frozen):
    return tokens_task(
        _torch_op(case, torch.nn.LinearCrossEntropyOptions(batch_chunk_size=case.shape.rows)), case, frozen
    )


# Liger ----------------------------------------------------------------------------------------------------------------


def _liger_simpo(case: HeadCase, frozen: bool, pairs_per_chunk: int, compiled: bool = True) -> Callable[[], Outcome]:
    """Liger wants all chosen sequences first, `[2B, T, H]`: reordered before the clock runs, and back for the check."""
    from liger_kernel.chunked_loss.simpo_loss import LigerFusedLinearSimPOFunction

    pairs = case.sequences // 2
    order = torch.cat([torch.arange(0, 2 * pairs, 2), torch.arange(1, 2 * pairs, 2)]).to(case.device)
    inputs = case.hidden.view(case.sequences, case.length, -1)[order].contiguous()
    targets = case.targets.view(case.sequences, case.length)[order].contiguous()

    def run() -> Outcome:
        hidden = inputs.detach().requires_grad_()
        weight = case.weight.detach().requires_grad_(not frozen)
        loss, (chosen, rejected, *_) = LigerFusedLinearSimPOFunction.apply(
            hidden, weight, targets, None, -100, SIMPO["beta"], 1.0, 0.0, False, compiled, SIMPO["gamma"],
            pairs_per_chunk,
        )  # fmt: skip
        grads = torch.autograd.grad(loss, (hidden,) if frozen else (hidden, weight))
        return LigerOutcome(order, chosen, rejected, *grads)

    return run


class LigerOutcome(Outcome):
    """Puts Liger's sequences back in the order of the case, only when asked: not on the clock."""

    def __init__(self, order, chosen, rejected, grad_hidden, grad_weight=None) -> None:
        self._order, self._means, self._grad = order, (chosen, rejected), grad_hidden
        self.grad_weight = grad_weight

    @property
    def value(self):
        return torch.stack(self._means, 1).flatten()

    @property
    def grad_hidden(self):
        back = torch.empty_like(self._order)
        back[self._order] = torch.arange(len(back), device=back.device)
        return self._grad[back].flatten(0, 1)


_LIGER_COMPILED = needs("liger_kernel", "triton", compiler=True)


@register("liger_simpo", "peer", "pairs", "compiled, chunk_size=1 (its default)", _LIGER_COMPILED, compiled=True)
def _(case, frozen):
    return _liger_simpo(case, frozen, 1)


@register("liger_simpo_one_chunk", "peer", "pairs", "compiled, all pairs in one chunk", _LIGER_COMPILED, compiled=True)
def _(case, frozen):
    return _liger_simpo(case, frozen, case.sequences // 2)


@register("liger_simpo_eager", "scale", "pairs", "not compiled, chunk_size=1", needs("liger_kernel", "triton"))
def _(case, frozen):
    return _liger_simpo(case, frozen, 1, compiled=False)


@register(
    "liger_scaled_ce", "peer", "tokens",
    "LigerFusedLinearScaledCrossEntropyFunction, implementation as it dispatches on this device",
    needs("liger_kernel", "triton"),
)  # fmt: skip
def _(case, frozen):
    from liger_kernel.ops.fused_linear_scaled_cross_entropy import LigerFusedLinearScaledCrossEntropyFunction

    def op(hidden, weight):
        return -LigerFusedLinearScaledCrossEntropyFunction.apply(hidden, weight, case.targets, return_entropy=False)

    return tokens_task(op, case, frozen)


def _liger_flce(hidden, weight, targets, **options):
    from liger_kernel.transformers.functional import liger_fused_linear_cross_entropy

    result = liger_fused_linear_cross_entropy(hidden, weight, targets, **options)
    return result[0] if isinstance(result, tuple) else result


for _chunks in (1, 16):

    def _flce_none(case, frozen, chunks=_chunks):
        return tokens_task(
            lambda h, w: -_liger_flce(h, w, case.targets, reduction="none", chunk_mem_const=chunks), case, frozen
        )

    def _flce_mean(case, frozen, chunks=_chunks):
        return mean_task(lambda h, w: _liger_flce(h, w, case.targets, chunk_mem_const=chunks), case, frozen)

    _on_cuda = needs("liger_kernel", "triton", cuda=True)
    register(f"liger_flce_none_c{_chunks}", "peer", "tokens", f'reduction="none", chunk_mem_const={_chunks}', _on_cuda)(
        _flce_none
    )
    register(f"liger_flce_mean_c{_chunks}", "bound", "mean", f"scalar gradient, chunk_mem_const={_chunks}", _on_cuda)(
        _flce_mean
    )


# TRL ------------------------------------------------------------------------------------------------------------------


@register(
    "trl_chunked", "peer", "tokens", "ChunkedLogProbFunction, its trainer's chunk of 32768 entries, no extra outputs",
    needs("trl", "transformers"),
)  # fmt: skip
def _(case, frozen):
    from trl.kernels import ChunkedLogProbFunction

    def op(hidden, weight):
        return ChunkedLogProbFunction.apply(hidden, weight, None, case.targets, 1.0, 32768, None, 1.0, ())[0]

    return tokens_task(op, case, frozen)


# CCE ------------------------------------------------------------------------------------------------------------------


def _cce(case: HeadCase, frozen: bool, **options) -> Callable[[], Outcome]:
    from cut_cross_entropy import linear_cross_entropy

    return tokens_task(
        lambda h, w: -linear_cross_entropy(h, w, case.targets, reduction="none", **options), case, frozen
    )


_CCE = needs("cut_cross_entropy", "triton", cuda=True, capability=(8, 0))


@register("cce_exact", "peer", "tokens", 'impl="cce", filter_eps=None', _CCE)
def _(case, frozen):
    return _cce(case, frozen, impl="cce", filter_eps=None)


@register("cce_default", "bound", "tokens", 'impl="cce", default filter, which drops small gradients', _CCE)
def _(case, frozen):
    return _cce(case, frozen, impl="cce")


@register(
    "cce_torch_compile", "peer", "tokens", 'impl="torch_compile", which stores the logits',
    needs("cut_cross_entropy", "triton", compiler=True), compiled=True,
)  # fmt: skip
def _(case, frozen):
    return _cce(case, frozen, impl="torch_compile")


# QuACK ----------------------------------------------------------------------------------------------------------------


@register(
    "quack", "bound", "mean", "chunked_linear_cross_entropy, scalar gradient, chunks of 4096 rows",
    needs("quack", cuda=True, capability=(9, 0)),
)  # fmt: skip
def _(case, frozen):
    from quack.linear_cross_entropy import chunked_linear_cross_entropy

    return mean_task(lambda h, w: chunked_linear_cross_entropy(h, w, case.targets, reduction="mean"), case, frozen)
