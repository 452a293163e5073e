"""C++ operations for the CPU, with the signatures of the eager ones.

`available()` says whether they were built, and which CPU capability runs (DEFAULT, AVX2 or AVX512: torch's choice,
`ATEN_CPU_CAPABILITY` included) or why they were not. `row_pass` and `tile_pass` stand for those of `row_pass.py`,
`sequence_stats` for `segments.sequence_stats` without its gradient, `mobt` for `mobt.mobt_eager`. What C++ alone has
is called in its own module (`path_attention.py`).

logits: fp32 (G in fp32, bf16 or fp16), bf16 or fp16 (G in the same dtype), unit column stride; everything else fp32;
targets, offsets, sample ids int64. fp64 raises: it stays with the eager form. Memory: nothing beyond the outputs.
"""

from __future__ import annotations

import torch
from torch import Tensor

from amopo_kernels import operations  # defines the schemas that the extension fills
from amopo_kernels.row_pass import RowState, Transform

_BUILD = "to build them, with torch and a C++ compiler at hand: pip install --no-build-isolation -e ."
_NAMES = (*operations.EAGER, *operations.CPP_ALONE)
_TORCH = torch.__version__.split("+")[0]
try:
    from amopo_kernels import _C
except ImportError as error:
    _C = None
    _MISSING = f"the C++ operations were not built, or do not load ({error}); {_BUILD}"
else:
    if _C.torch_version != _TORCH:
        _MISSING = f"the C++ operations were built for torch {_C.torch_version}, this is {_TORCH}; {_BUILD}"
        _C = None
    elif not all(torch._C._dispatch_has_kernel_for_dispatch_key(f"amopo::{name}", "CPU") for name in _NAMES):
        _MISSING = f"the C++ operations were built from other sources than these; {_BUILD}"
        _C = None


def available() -> tuple[bool, str]:
    """Whether the extension is there, and the CPU capability that runs, or the reason why not."""
    return (False, _MISSING) if _C is None else (True, _C.capability())


def require() -> None:
    """Raise RuntimeError, with what to do, where the extension is not there."""
    if _C is None:
        raise RuntimeError(f"amopo_kernels.cpp: {_MISSING}")


def row_pass(
    logits: Tensor,
    targets: Tensor,
    bias: Tensor | None,
    transform: Transform,
    *,
    logp: Tensor,
    state: RowState,
    out: Tensor | None,
    half_range: bool,
    block_rows: int = 0,
) -> None:
    """Fill `logp` and `state` from `logits[C, V]` and write G to `out` (None: no gradient is wanted).

    Unlike the eager form it leaves the logits alone unless `out` is the logits. `block_rows` is accepted and not
    needed.
    """
    require()
    arguments = (targets, bias, transform.scale, transform.softcap, half_range, logp, *state)
    if out is not None and out.data_ptr() == logits.data_ptr() and out.dtype == logits.dtype:
        torch.ops.amopo.row_pass_(logits, *arguments)
    else:
        torch.ops.amopo.row_pass(logits, *arguments, out)


def tile_pass(
    logits: Tensor,
    targets: Tensor,
    bias: Tensor | None,
    transform: Transform,
    *,
    state: RowState,
    out: Tensor,
    half_range: bool,
    block_rows: int = 0,
) -> None:
    """Write G of a vocabulary tile to `out[C, T]`; targets are relative to the tile, those outside lie elsewhere."""
    require()
    arguments = (targets, bias, transform.scale, transform.softcap, half_range, *state)
    if out.data_ptr() == logits.data_ptr() and out.dtype == logits.dtype:
        torch.ops.amopo.tile_pass_(logits, *arguments)
    else:
        torch.ops.amopo.tile_pass(logits, *arguments, out)


def sequence_stats(logps: Tensor, offsets: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Sum, length, mean and population variance per sequence of fp32 `logps[N]`, without a gradient."""
    require()
    starts, stops = offsets[:-1].contiguous(), offsets[1:].contiguous()
    return torch.ops.amopo.segment_moments(logps.detach().contiguous(), starts, stops)


def mobt(
    logps: Tensor,
    starts: Tensor,
    stops: Tensor,
    *,
    weights: str,
    given: Tensor | None,
    sample_ids: Tensor,
    seed: int,
    step: Tensor,
    beta: float,
    gamma: float,
    pooled: str,
    present: Tensor | None = None,
) -> tuple[Tensor, ...]:
    """The whole objective in one call; see `mobt_op.mobt` for arguments and results."""
    require()
    edges = (starts.contiguous(), stops.contiguous())
    given = None if given is None else given.to(torch.float32).contiguous()
    present = None if present is None else present.contiguous()
    return torch.ops.amopo.weighted_loss(
        logps.detach().contiguous(), *edges, weights, given, sample_ids.contiguous(), seed, step, beta, gamma, pooled,
        present,
    )  # fmt: skip
