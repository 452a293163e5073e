"""Kernels for attention over a packed row, and which of them runs.

Each takes queries `[T, Hq, D]`, keys and values of all paths `[sum of path lengths, Hkv, D]`, the `TreePaths`, the
scale, a window and a softcap (or None), and gives `[T, Hq, Dv]`: segment i of the queries against path i, causal,
aligned at the bottom right.

| backend | where | window | softcap |
|---|---|---|---|
| cpp | CPU, fp32, bf16 and fp16; one parallel region a layer (`amopo_kernels.path_attention`) | yes | no |
| sdpa | any device and dtype; torch's SDPA, a loop over paths (`amopo.packing.sdpa`) | yes | by explicit products |
| varlen | CUDA, fp16 and bf16; torch.nn.attention.varlen, one launch | torch >= 2.11 | no |
| flash_attn | CUDA, fp16 and bf16; the flash-attn package, one launch | yes | yes |
| flash_attn_3 | CUDA (sm_90), fp16 and bf16; flash_attn_interface, one launch | yes | yes |

`AMOPO_ATTENTION` asks for one by name; by default the first of cpp, varlen, flash_attn and sdpa that can do what the
layer wants. `AMOPO_BACKEND` leaves cpp out where it asks for anything else.
"""

from __future__ import annotations

import functools
import importlib
import importlib.util
import inspect
import os
import types
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from amopo.packing.layout import TreePaths
from amopo.packing.sdpa import run_sdpa
from amopo_kernels.backend import cpp_available

BACKENDS = ("cpp", "varlen", "flash_attn", "flash_attn_3", "sdpa")
# What a model that asked for flash attention is tried with first, by the name of its attention.
_FIRST = {"amopo_tree_fa2": ("flash_attn",), "amopo_tree_fa3": ("flash_attn_3",)}
_ORDER = {"cpu": ("cpp", "sdpa")}
_ORDER_ELSEWHERE = ("varlen", "flash_attn", "sdpa")
_ORDINARY_HEAD = 128
# Names of the backends that ran, for whoever wants to know (`amopo doctor`).
RAN: set[str] = set()
_HALF = (torch.float16, torch.bfloat16)


def choose_backend(
    module: nn.Module, query: Tensor, value: Tensor, *, window: int | None, softcap: float | None
) -> str:
    """The backend for this layer's call; raises where `AMOPO_ATTENTION` asks for one that cannot do it."""
    asked = os.environ.get("AMOPO_ATTENTION", "")
    if asked:
        if asked not in BACKENDS:
            raise ValueError(f"AMOPO_ATTENTION={asked!r} is not known; known: {', '.join(BACKENDS)}")
        reason = _cannot(asked, query, value, window, softcap)
        if reason:
            raise ValueError(f"AMOPO_ATTENTION={asked!r} cannot run {type(module).__name__}: {reason}")
        return asked
    implementation = getattr(getattr(module, "config", None), "_attn_implementation", "")
    for name in (*_FIRST.get(implementation, ()), *_order(query.device)):
        if _cannot(name, query, value, window, softcap) is None:
            return name
    raise AssertionError("sdpa runs anywhere")


def runs_compiled_on_cpu(softcap: float | None = None) -> bool:
    """Whether a layer on a CPU, in fp32, bf16 or fp16, gets the C++ kernel."""
    call = types.SimpleNamespace(device=torch.device("cpu"), dtype=torch.float32)
    return os.environ.get("AMOPO_ATTENTION", "") in ("", "cpp") and _cpp_cannot(call, softcap) is None


def _order(device: torch.device) -> tuple[str, ...]:
    return _ORDER.get(device.type, _ORDER_ELSEWHERE)


def _cannot(name: str, query: Tensor, value: Tensor, window: int | None, softcap: float | None) -> str | None:
    """Why a backend cannot run this call, or None."""
    if name == "sdpa":
        return None
    if name == "cpp":
        return _cpp_cannot(query, softcap)
    if query.device.type != "cuda":
        return f"it runs on CUDA, not on {query.device.type}"
    if query.dtype not in _HALF:
        return f"it takes fp16 and bf16, not {query.dtype}"
    if query.shape[-1] != value.shape[-1] or query.shape[-1] > 256 or query.shape[-1] % 8:
        return f"head sizes {query.shape[-1]} and {value.shape[-1]} (it takes equal multiples of 8, up to 256)"
    needed = 9 if name == "flash_attn_3" else 8
    if _capability(query.device)[0] < needed:
        return f"it needs compute capability {needed}.0"
    if name == "varlen":
        parameters = _varlen_parameters()
        if parameters is None:
            return f"torch {torch.__version__} has no torch.nn.attention.varlen"
        if softcap is not None:
            return "it has no softcap"
        if window is not None and "window_size" not in parameters:
            return f"torch {torch.__version__} has no sliding window in it"
        return None
    module = {"flash_attn": "flash_attn", "flash_attn_3": "flash_attn_interface"}[name]
    return None if _is_there(module) else f"{module} is not installed"


def _cpp_cannot(query: Tensor, softcap: float | None) -> str | None:
    if query.device.type != "cpu":
        return f"it runs on the CPU, not on {query.device.type}"
    if query.dtype not in (torch.float32, *_HALF):
        return f"it takes fp32, bf16 and fp16, not {query.dtype}"
    if softcap is not None:
        return "it has no softcap"
    if (asked := os.environ.get("AMOPO_BACKEND", "")) not in ("", "cpp"):
        return f"AMOPO_BACKEND={asked} leaves it out"
    there, reason = cpp_available("cpu")
    return None if there else reason


def describe(devices: Sequence[str]) -> list[dict[str, str]]:
    """Per device and dtype: the kernel for a layer of ordinary heads, and why none of those before it.

    A layer with a window, a softcap or other head sizes may get another one; so may a model that was loaded with
    flash attention.
    """
    rows = []
    for name in devices:
        for dtype in (torch.float32, torch.bfloat16):
            call = types.SimpleNamespace(device=torch.device(name), dtype=dtype, shape=(1, 1, _ORDINARY_HEAD))
            asked = os.environ.get("AMOPO_ATTENTION", "")
            backend = choose_backend(nn.Identity(), call, call, window=None, softcap=None) if not asked else asked
            if asked and asked not in BACKENDS:
                raise ValueError(f"AMOPO_ATTENTION={asked!r} is not known; known: {', '.join(BACKENDS)}")
            reason = "set by AMOPO_ATTENTION"
            if asked and (why := _cannot(asked, call, call, None, None)):
                backend, reason = "none", f"AMOPO_ATTENTION={asked} cannot run here: {why}"
            elif not asked:
                order = _order(call.device)
                before = order[: order.index(backend)]
                found = {other: _cannot(other, call, call, None, None) for other in before}
                reason = "; ".join(f"not {other}: {why}" for other, why in found.items()) or "the first of its order"
            label = {"device": name, "inputs": str(dtype).removeprefix("torch.")}
            rows.append({**label, "backend": backend, "reason": reason})
    return rows


@functools.cache
def _is_there(module: str) -> bool:
    return importlib.util.find_spec(module) is not None


def _capability(device: torch.device) -> tuple[int, int]:
    return torch.cuda.get_device_capability(device)


@functools.cache
def _varlen_parameters() -> frozenset[str] | None:
    try:
        from torch.nn.attention.varlen import varlen_attn
    except ImportError:
        return None
    return frozenset(inspect.signature(varlen_attn).parameters)


def _run_cpp(q: Tensor, k: Tensor, v: Tensor, paths: TreePaths, scaling: float, window: int | None, _) -> Tensor:
    from amopo_kernels.path_attention import path_attention

    return path_attention(q, k, v, paths.cu_seqlens_q, paths.cu_seqlens_k, scaling=scaling, window=window)


def _run_varlen(q: Tensor, k: Tensor, v: Tensor, paths: TreePaths, scaling: float, window: int | None, _) -> Tensor:
    from torch.nn.attention.varlen import varlen_attn

    parameters = _varlen_parameters()
    options: dict[str, Any] = {}
    if "window_size" in parameters:  # as a tuple: torch compares it with (-1, 0) to see that it is causal
        options["window_size"] = (-1 if window is None else window - 1, 0)
    else:
        options["is_causal"] = True
    if "scale" in parameters:
        options["scale"] = scaling
    else:
        q = q * (scaling * q.shape[-1] ** 0.5)
    if "enable_gqa" in parameters:
        options["enable_gqa"] = q.shape[1] != k.shape[1]
    return varlen_attn(
        q.contiguous(), k.contiguous(), v.contiguous(), paths.cu_seqlens_q, paths.cu_seqlens_k,
        paths.max_seqlen_q, paths.max_seqlen_k, **options,
    )  # fmt: skip


def _run_flash(q, k, v, paths: TreePaths, scaling, window, softcap, *, module: str) -> Tensor:
    function = importlib.import_module(module).flash_attn_varlen_func
    output = function(
        q.contiguous(), k.contiguous(), v.contiguous(),
        cu_seqlens_q=paths.cu_seqlens_q, cu_seqlens_k=paths.cu_seqlens_k,
        max_seqlen_q=paths.max_seqlen_q, max_seqlen_k=paths.max_seqlen_k,
        softmax_scale=scaling, causal=True, window_size=(-1 if window is None else window - 1, 0),
        softcap=softcap or 0.0, deterministic=torch.are_deterministic_algorithms_enabled(),
    )  # fmt: skip
    return output[0] if isinstance(output, tuple) else output


RUN: dict[str, Callable[..., Tensor]] = {
    "cpp": _run_cpp,
    "sdpa": run_sdpa,
    "varlen": _run_varlen,
    "flash_attn": functools.partial(_run_flash, module="flash_attn"),
    "flash_attn_3": functools.partial(_run_flash, module="flash_attn_interface"),
}
