"""FLOPs of attention on a CPU: those of the products that a plain loop over heads makes."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch.utils.flop_counter import FlopCounterMode

from amopo_kernels import cpp
from amopo_kernels.path_attention import path_attention
from bench.common import attention_flops


def counted(function, *parts: torch.Tensor) -> tuple[int, int]:
    """FLOPs of a forward, and of its backward."""
    attention_flops.register()
    parts = [part.requires_grad_() for part in parts]
    with FlopCounterMode(display=False) as forward:
        out = function(*parts)
    with FlopCounterMode(display=False) as backward:
        torch.autograd.grad(out, parts, torch.ones_like(out))
    return forward.get_total_flops(), backward.get_total_flops()


def test_sdpa_on_a_cpu():
    q, k, v = (torch.randn(1, 3, length, 8) for length in (5, 9, 9))
    flops = 2 * 3 * 5 * 9 * 8
    assert counted(F.scaled_dot_product_attention, q, k, v) == (2 * flops, 5 * flops)


@pytest.mark.skipif(not cpp.available()[0], reason=cpp.available()[1])
def test_paths_are_counted_as_sdpa_is_path_by_path():
    lengths = [(5, 9), (3, 3)]
    starts = [torch.tensor([0, *(pair[which] for pair in lengths)]).cumsum(0).to(torch.int32) for which in (0, 1)]
    parts = torch.randn(8, 4, 8), torch.randn(12, 2, 8), torch.randn(12, 2, 8)
    found = counted(lambda *qkv: path_attention(*qkv, *starts, scaling=1.0), *parts)
    flops = 2 * 4 * (5 * 9 + 3 * 3) * 8
    assert found == (2 * flops, 5 * flops)
