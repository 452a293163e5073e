"""FLOPs of attention on a CPU for torch's FlopCounterMode, which counts none of its own kernel there (torch 2.13).

In torch's convention for scaled_dot_product_attention: every query against every key that the kernel is given, also
those that it does not see; a backward of five products to the forward's two.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import flop_registry, register_flop_formula, sdpa_backward_flop_count, sdpa_flop_count

from amopo_kernels import operations  # noqa: F401  (defines the operation)


def _pairs(starts_q: Tensor, starts_k: Tensor) -> int:
    """Queries times keys, over all paths."""
    return int((starts_q.diff().long() * starts_k.diff().long()).sum())


def path_attention_flops(
    q: Tensor, k: Tensor, v: Tensor, starts_q: Tensor, starts_k: Tensor, *_: Any, **__: Any
) -> int:
    """Of the forward of `amopo_kernels.path_attention`."""
    return 2 * q.shape[1] * _pairs(starts_q, starts_k) * (q.shape[2] + v.shape[2])


def path_attention_backward_flops(
    grad: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor, starts_q: Tensor, starts_k: Tensor,
    *_: Any, **__: Any,
) -> int:  # fmt: skip
    """Of its backward: scores and their gradient again, and three products for dq, dk and dv."""
    return 2 * q.shape[1] * _pairs(starts_q, starts_k) * (3 * q.shape[2] + 2 * v.shape[2])


def _sdpa(q: torch.Size, k: torch.Size, v: torch.Size, *_: Any, **__: Any) -> int:
    return sdpa_flop_count(q, k, v)


def _sdpa_backward(grad: torch.Size, q: torch.Size, k: torch.Size, v: torch.Size, *_: Any, **__: Any) -> int:
    return sdpa_backward_flop_count(grad, q, k, v)


def register() -> None:
    """Let every FlopCounterMode of this process count them."""
    raw = {
        torch.ops.amopo.path_attention: path_attention_flops,
        torch.ops.amopo.path_attention_backward: path_attention_backward_flops,
    }
    aten = torch.ops.aten
    of_shapes = {
        aten._scaled_dot_product_flash_attention_for_cpu: _sdpa,
        aten._scaled_dot_product_flash_attention_for_cpu_backward: _sdpa_backward,
    }
    for formulas, get_raw in ((raw, True), (of_shapes, False)):
        for operation, formula in formulas.items():
            if operation not in flop_registry:
                register_flop_formula(operation, get_raw=get_raw)(formula)
