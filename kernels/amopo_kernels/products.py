"""The three matrix products of a linear head, in a stated precision.

    logits  L = h W^T          [C, V]
    dHu     U = G W            [C, H]
    dW      D = G^T x          [V, H]

Three policies, chosen once per call by `choose_products` (never by probing at run time):

| policy | who | logits | products read |
|---|---|---|---|
| native | fp32, fp64; half precision with `logits_dtype="input"` or on a CPU with bf16 units | input | input |
| mixed  | half precision on CUDA | fp32 straight from the product (`out_dtype`) | input |
| upcast | half precision on a CPU without such units, or `logits_dtype=torch.float32` there | fp32 | fp32 tiles |

"upcast" copies the weight to fp32 one vocabulary tile at a time, so that no fp32 `[V, H]` ever exists. On an AVX2
machine (2 cores, no AMX or AVX-512-BF16) a bf16 product runs at 19 GFLOP/s and the fp32 product at 119 (torch 2.13,
512 x 896 x 16384), so the copies pay six-fold there. Where bf16 units exist the fp32 product is told to use them.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

HALF_DTYPES = (torch.bfloat16, torch.float16)
SUPPORTED_DTYPES = (torch.float32, torch.float64, *HALF_DTYPES)


def cpu_has_native(dtype: torch.dtype) -> bool:
    """Whether this CPU multiplies matrices of `dtype` in hardware; only asked for bf16 and fp16."""
    probe = getattr(torch.cpu, "_is_amx_tile_supported" if dtype == torch.bfloat16 else "_is_amx_fp16_supported", None)
    if probe is not None and probe():
        return True
    probe = getattr(torch.cpu, "_is_avx512_bf16_supported", None) if dtype == torch.bfloat16 else None
    return bool(probe is not None and probe())


@dataclass(frozen=True)
class Products:
    """How the products of one call run. `compute` is the dtype of hidden, weight and stored G; `logits` that of L."""

    policy: str
    compute: torch.dtype
    logits: torch.dtype

    @property
    def accumulate(self) -> torch.dtype:
        """dtype of row statistics and of element-wise work."""
        return torch.float64 if self.compute == torch.float64 else torch.float32

    @property
    def operand(self) -> torch.dtype:
        """dtype that the products read G and x in."""
        return torch.float32 if self.policy == "upcast" else self.compute

    def project(self, rows: Tensor, weight: Tensor, *, out: Tensor, cast_cols: int) -> None:
        """`out[C, V'] = rows[C, H] @ weight[V', H].T`, in the policy's logits dtype."""
        if self.policy == "native":
            torch.mm(rows, weight.t(), out=out)
        elif self.policy == "mixed":
            torch.mm(rows, weight.t(), out_dtype=torch.float32, out=out)
        else:
            with _half_units(self.compute):
                rows32 = rows.to(torch.float32)
                for tile in column_tiles(weight.shape[0], cast_cols):
                    torch.mm(rows32, weight[tile].to(torch.float32).t(), out=out[:, tile])

    @property
    def exact_half(self) -> bool:
        """fp16 operands: their products need an fp32 result, since G is stored as 2^12 times softmax."""
        return self.operand == torch.float16

    def times_weight(self, g: Tensor, weight: Tensor, *, out: Tensor, cast_cols: int, scale: float = 1.0) -> None:
        """`out[C, H] = scale * g[C, V] @ weight[V, H]`, accumulated in fp32 or better, rounded once to `out.dtype`."""
        if self.policy != "upcast":
            torch.addmm(out, g, weight, beta=0.0, alpha=scale, out=out)
            return
        with _half_units(self.compute):
            total = torch.zeros(out.shape, dtype=torch.float32, device=out.device)
            for tile in column_tiles(weight.shape[0], cast_cols):
                total.addmm_(g[:, tile], weight[tile].to(torch.float32))
            out.copy_(total if scale == 1.0 else total.mul_(scale))

    def transposed_times(self, g: Tensor, x: Tensor, *, out: Tensor, scale: Tensor | None = None) -> None:
        """`out[V', H] = scale * g[N, V'].T @ x[N, H]`, rounded once to `out.dtype`; operands in `self.operand`."""
        if scale is not None:
            out.copy_(fp32_product(g.t(), x).mul_(scale))
            return
        if out.dtype == self.operand and out.is_contiguous():
            torch.mm(g.t(), x, out=out)
            return
        if g.is_cuda and out.dtype == torch.float32:  # master weights under autocast: never rounded to half
            torch.mm(g.t(), x, out_dtype=torch.float32, out=out)
            return
        with _half_units(self.compute) if self.policy == "upcast" else contextlib.nullcontext():
            out.copy_(torch.mm(g.t(), x))


def choose_products(dtype: torch.dtype, device: torch.device, logits_dtype: torch.dtype | str | None) -> Products:
    """Policy for inputs of `dtype` on `device`; `logits_dtype` is None (default), "input" or `torch.float32`."""
    if dtype not in SUPPORTED_DTYPES:
        raise TypeError(f"linear_logprobs: dtype {dtype} is not supported; use float32, float64, bfloat16 or float16")
    if logits_dtype not in (None, "input", torch.float32, dtype):
        raise ValueError(
            f'logits_dtype must be None, "input" or torch.float32 for {dtype} inputs, got {logits_dtype!r}'
        )
    if dtype not in HALF_DTYPES:
        if logits_dtype == torch.float32 and dtype == torch.float64:
            raise ValueError("logits_dtype=torch.float32 would lose precision of float64 inputs; leave it None")
        return Products("native", dtype, dtype)
    if logits_dtype in ("input", dtype):
        return Products("native", dtype, dtype)
    if device.type == "cpu":
        native = logits_dtype is None and cpu_has_native(dtype)
        return Products("native", dtype, dtype) if native else Products("upcast", dtype, torch.float32)
    if device.type == "cuda":
        return Products("mixed", dtype, torch.float32)
    if logits_dtype == torch.float32:
        raise ValueError(f"logits_dtype=torch.float32 is not available on {device.type}; leave it None")
    return Products("native", dtype, dtype)


def fp32_product(a: Tensor, b: Tensor) -> Tensor:
    """Product of half-precision matrices with an fp32 result."""
    if a.is_cuda:
        return torch.mm(a, b, out_dtype=torch.float32)
    return torch.mm(a.to(torch.float32), b.to(torch.float32))


def column_tiles(columns: int, width: int) -> Iterator[slice]:
    """Slices of at most `width` that cover `range(columns)` in order."""
    for start in range(0, columns, max(1, width)):
        yield slice(start, min(start + max(1, width), columns))


@contextlib.contextmanager
def _half_units(dtype: torch.dtype) -> Iterator[None]:
    """Let fp32 CPU products use bf16 units where the CPU has them; the operands that matter are bf16 copies anyway."""
    if dtype != torch.bfloat16 or not cpu_has_native(torch.bfloat16):
        yield
        return
    settings = torch.backends.mkldnn.matmul
    before = settings.fp32_precision
    settings.fp32_precision = "bf16"
    try:
        yield
    finally:
        settings.fp32_precision = before
