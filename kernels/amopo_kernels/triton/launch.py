"""Host functions that start the Triton kernels, with the signatures of the eager implementations.

Each start is counted in `LAUNCHES` (a test asserts that the kernels ran, not their eager twins). Tensors must be CUDA
tensors, or CPU tensors under `TRITON_INTERPRET=1`. The right device is current while a kernel starts.

Kernels know the row strides of matrices and no others. Vectors of the head (targets, bias, row state) must be
contiguous and are refused otherwise: `linear_logprobs` copies strided ones once, not once per chunk. Functions that
run once per loss copy what is strided themselves.
"""

from __future__ import annotations

import contextlib
from collections import Counter

import torch
import triton
from torch import Tensor

from amopo_kernels.mobt import LOGGED
from amopo_kernels.row_pass import RowState, Transform
from amopo_kernels.triton.configs import Config, config
from amopo_kernels.triton.gather import gather_rows_kernel, scale_rows_kernel, scatter_rows_kernel
from amopo_kernels.triton.mobt import GAUSSIAN, GIVEN, MEAN, UNIFORM, expand_segments_kernel, mobt_kernel
from amopo_kernels.triton.row_pass import row_pass_kernel, tile_pass_kernel
from amopo_kernels.triton.segments import sequence_stats_kernel

LAUNCHES: Counter[str] = Counter()
_WEIGHTS = {"given": GIVEN, "gaussian": GAUSSIAN, "mean": MEAN, "uniform": UNIFORM}
# fp contraction is set by hand: its default differs between Triton versions, and the results should not.
_OPTIONS = {"enable_fp_fusion": True}


def _options(setting: Config) -> dict[str, int | bool]:
    """What the compiler is told; AMD's does not know a limit on registers."""
    options = {"num_warps": setting.num_warps, **_OPTIONS}
    if setting.max_registers is not None and torch.version.hip is None:
        options["maxnreg"] = setting.max_registers
    return options


def _start(name: str, tensor: Tensor) -> tuple[Config, contextlib.AbstractContextManager]:
    LAUNCHES[name] += 1
    if not tensor.is_cuda:
        return config(name, None), contextlib.nullcontext()
    return config(name, torch.cuda.get_device_capability(tensor.device)), torch.cuda.device(tensor.device)


def _check_columns(**tensors: Tensor) -> None:
    for name, tensor in tensors.items():
        if tensor.stride(-1) != 1 and tensor.shape[-1] > 1 and tensor.numel():
            raise ValueError(f"{name} must have unit stride in its last dimension, got strides {tensor.stride()}")


def _check_vectors(**tensors: Tensor | None) -> None:
    for name, tensor in tensors.items():
        if tensor is not None and not tensor.is_contiguous():
            raise ValueError(f"{name} must be contiguous, got strides {tensor.stride()}; call .contiguous() first")


def _factors(transform: Transform) -> tuple[float, float]:
    """Scale and cap as numbers; what stands for None is not read by the kernel."""
    return tuple(1.0 if value is None else value for value in transform)


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
    block_rows: int,
) -> None:
    """See `amopo_kernels.row_pass.row_pass`; `block_rows` has no meaning here, a program takes a row."""
    rows, vocab = logits.shape
    if rows == 0:
        return
    _check_columns(logits=logits, out=logits if out is None else out)
    _check_vectors(targets=targets, bias=bias, logp=logp, **state._asdict())
    in_place = out is not None and out.data_ptr() == logits.data_ptr()
    name = "row_pass" + ("_softcap" if transform.softcap is not None else "") + ("_bias" if bias is not None else "")
    setting, device = _start(name, logits)
    stored = logits if out is None else out
    with device:
        row_pass_kernel[(rows,)](
            logits, stored, targets, bias, logp, *state, logits.stride(0), stored.stride(0), vocab,
            *_factors(transform),
            HAS_BIAS=bias is not None, HAS_SCALE=transform.scale is not None, HAS_CAP=transform.softcap is not None,
            STORE=out is not None, MAXIMUM_FIRST=in_place and not half_range,
            HALF_RANGE=half_range and out is not None,
            BLOCK=setting.block, **_options(setting),
        )  # fmt: skip


def tile_pass(
    logits: Tensor,
    targets: Tensor,
    bias: Tensor | None,
    transform: Transform,
    *,
    state: RowState,
    out: Tensor,
    half_range: bool,
    block_rows: int,
) -> None:
    """See `amopo_kernels.row_pass.tile_pass`."""
    rows, width = logits.shape
    if rows == 0:
        return
    _check_columns(logits=logits, out=out)
    _check_vectors(targets=targets, bias=bias, **state._asdict())
    setting, device = _start("tile_pass", logits)
    with device:
        tile_pass_kernel[(rows, triton.cdiv(width, setting.block))](
            logits, out, targets, bias, *state, logits.stride(0), out.stride(0), width,
            *_factors(transform),
            HAS_BIAS=bias is not None, HAS_SCALE=transform.scale is not None, HAS_CAP=transform.softcap is not None,
            HALF_RANGE=half_range, BLOCK=setting.block, **_options(setting),
        )  # fmt: skip


def sequence_stats(logps: Tensor, offsets: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Sum, length, mean and population variance per segment, each fp32 `[S]`."""
    sequences = offsets.shape[0] - 1
    outputs = tuple(torch.empty(sequences, dtype=torch.float32, device=logps.device) for _ in range(4))
    if sequences:
        setting, device = _start("sequence_stats", logps)
        with device:
            sequence_stats_kernel[(sequences,)](
                logps.contiguous(), offsets.contiguous(), *outputs, BLOCK=setting.block, **_options(setting)
            )
    return outputs


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
    """losses `[B]`; weights `[B, K]`; coefficients, sums, lengths `[B, K, 2]`; logged `[B, 10, K]`, all fp32."""
    samples, num_objectives = starts.shape[:2]
    options = {"dtype": torch.float32, "device": logps.device}
    losses = torch.empty(samples, **options)
    alpha = torch.empty(samples, num_objectives, **options)
    logged = torch.empty(samples, len(LOGGED), num_objectives, **options)
    coefficients, sums, lengths = (torch.empty(samples, num_objectives, 2, **options) for _ in range(3))
    setting, device = _start("mobt", logps)
    signed_seed = seed - (1 << 64) if seed >= 1 << 63 else seed  # Triton passes integers as signed
    with device:
        mobt_kernel[(samples,)](
            logps.contiguous(), starts.contiguous(), stops.contiguous(),
            alpha if given is None else given.to(torch.float32).contiguous(), sample_ids.contiguous(), step,
            None if present is None else present.to(torch.int32).contiguous(),
            losses, alpha, coefficients, sums, lengths, logged, signed_seed, num_objectives, beta, gamma,
            WEIGHTS=_WEIGHTS[weights], UNION=pooled == "union", MASKED=present is not None,
            OBJECTIVES=max(2, triton.next_power_of_2(num_objectives)),
            BLOCK=setting.block, **_options(setting),
        )  # fmt: skip
    return losses, alpha, coefficients, sums, lengths, logged


def expand_segments(values: Tensor, starts: Tensor, stops: Tensor, length: int) -> Tensor:
    """fp32 `[length]`: each token gets the value of its sequence."""
    out = torch.zeros(length, dtype=torch.float32, device=values.device)
    if starts.numel():
        setting, device = _start("expand_segments", values)
        with device:
            expand_segments_kernel[(starts.numel(),)](
                values.contiguous(), starts.contiguous(), stops.contiguous(), out,
                BLOCK=setting.block, **_options(setting),
            )  # fmt: skip
    return out


def gather_rows(x: Tensor, index: Tensor) -> Tensor:
    """`x[index]`, `[N, H]`."""
    _check_columns(x=x)
    out = torch.empty((index.shape[0], x.shape[1]), dtype=x.dtype, device=x.device)
    if out.numel():
        setting, device = _start("gather_rows", x)
        with device:
            gather_rows_kernel[(out.shape[0], triton.cdiv(out.shape[1], setting.block))](
                x, index.contiguous(), out, x.stride(0), out.stride(0), out.shape[1],
                BLOCK=setting.block, **_options(setting),
            )  # fmt: skip
    return out


def scatter_rows(grad: Tensor, positions: Tensor, offsets: Tensor) -> Tensor:
    """`[R, H]`: for each source row the fp32 sum of the gradient rows that read it."""
    _check_columns(grad=grad)
    out = torch.empty((offsets.shape[0] - 1, grad.shape[1]), dtype=grad.dtype, device=grad.device)
    if out.numel():
        setting, device = _start("scatter_rows", grad)
        with device:
            scatter_rows_kernel[(out.shape[0], triton.cdiv(out.shape[1], setting.block))](
                grad, positions.contiguous(), offsets.contiguous(), out, grad.stride(0), out.stride(0), out.shape[1],
                BLOCK=setting.block, **_options(setting),
            )  # fmt: skip
    return out


def scale_rows(x: Tensor, scale: Tensor, factor: float, out: Tensor) -> Tensor:
    """`out = factor * scale[:, None] * x`, rounded once."""
    x = x if x.stride(-1) == 1 else x.contiguous()
    _check_columns(out=out)
    if out.numel():
        setting, device = _start("scale_rows", x)
        with device:
            scale_rows_kernel[(out.shape[0], triton.cdiv(out.shape[1], setting.block))](
                x, scale.contiguous(), out, x.stride(0), out.stride(0), out.shape[1], factor,
                BLOCK=setting.block, **_options(setting),
            )  # fmt: skip
    return out
