"""Attention over a packed row: every token sees the tokens before it on its own path, and nothing else.

Contract
--------
`tree_attention` is registered with transformers' AttentionInterface under the names of `NAMES`. A packed call hands a
`TreePaths` to every layer as the argument `amopo_paths`; keys and values are then gathered along the root-to-leaf paths
(where paths share tokens) and attention runs once per token, causal and aligned at the bottom right:

                     keys: the path of leaf i
                     x0 x1 x2 t0 t1 y0 y1
    queries:   t0     *  *  *  *
    segment i  t1     *  *  *  *  *
               y0     *  *  *  *  *  *
               y1     *  *  *  *  *  *  *

A path holds its tokens in their logical order, so sliding windows are exact: `sliding_window=w` leaves the last w keys.
Memory: the gathered keys and values of one layer, 2 * (sum of path lengths) * kv heads * head size.

| backend | where | window | softcap |
|---|---|---|---|
| sdpa | any device and dtype; torch's SDPA, a loop over paths | yes | by explicit products |
| varlen | CUDA, fp16 and bf16; torch.nn.attention.varlen, one launch | torch >= 2.11 | no |
| flash_attn | CUDA, fp16 and bf16; the flash-attn package, one launch | yes | yes |
| flash_attn_3 | CUDA (sm_90), fp16 and bf16; flash_attn_interface, one launch | yes | yes |

`AMOPO_ATTENTION` asks for one by name; by default the first of varlen, flash_attn and sdpa that can do what the layer
wants. A call without `amopo_paths` (generation, evaluation of one text) is transformers' own attention.

Unsupported (raises): attention dropout while training, attention sinks, position biases, attention that is not causal,
an attention mask or a cache beside a packed row.
"""

from __future__ import annotations

import functools
import importlib.util
import inspect
import os
import sys
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from amopo.packing.layout import TreePaths
from amopo_kernels.gather import gather_rows

# What a model's attention is called before and after `install`. A name with "flash" in it would make transformers look
# for a kernel on the hub.
NAMES = {
    "sdpa": "amopo_tree",
    "eager": "amopo_tree_eager",
    "flash_attention_2": "amopo_tree_fa2",
    "flash_attention_3": "amopo_tree_fa3",
}
BACKENDS = ("varlen", "flash_attn", "flash_attn_3", "sdpa")
_HALF = (torch.float16, torch.bfloat16)


def tree_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    sliding_window: int | None = None,
    softcap: float | None = None,
    is_causal: bool | None = None,
    s_aux: Tensor | None = None,
    position_bias: Tensor | None = None,
    amopo_paths: TreePaths | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """query `[1, Hq, T, D]`, key and value `[1, Hkv, T, D]`, rotated already, to `[1, T, Hq, Dv]`."""
    if amopo_paths is None:
        options = {
            "dropout": dropout, "scaling": scaling, "sliding_window": sliding_window, "softcap": softcap,
            "is_causal": is_causal, "s_aux": s_aux, "position_bias": position_bias, **kwargs,
        }  # fmt: skip
        given = {name: option for name, option in options.items() if option is not None}
        return _own_attention(module)(module, query, key, value, attention_mask, **given)
    _check_call(module, query, key, attention_mask, dropout, is_causal, s_aux, position_bias, amopo_paths, kwargs)
    window = None if sliding_window is None or sliding_window >= amopo_paths.max_seqlen_k else sliding_window
    scaling = query.shape[-1] ** -0.5 if scaling is None else scaling
    queries, keys, values = (part[0].transpose(0, 1) for part in (query, key, value))  # [T, H, D]
    if amopo_paths.keys is not None:
        keys, values = gather_rows(keys, amopo_paths.keys), gather_rows(values, amopo_paths.keys)
    name = choose_backend(module, query, value, window=window, softcap=softcap)
    output = _RUN[name](queries, keys, values, amopo_paths, scaling, window, softcap)
    return output[None].contiguous(), None


def _check_call(module, query, key, attention_mask, dropout, is_causal, s_aux, position_bias, paths, kwargs) -> None:
    layer = type(module).__name__

    def refuse(reason: str) -> None:
        raise ValueError(f"{layer} cannot attend over a packed row: {reason}")

    tokens = paths.subtree_end.shape[0]
    if query.shape[0] != 1 or query.shape[2] != tokens:
        refuse(f"its layout is of one row of {tokens} tokens, the queries are {tuple(query.shape)}")
    if key.shape[2] != tokens:
        refuse(f"{key.shape[2]} keys for {tokens} tokens; a cache must not be used with it")
    if attention_mask is not None and attention_mask.numel() != 1:
        refuse("an attention mask came with it; leave attention_mask out")
    if dropout and module.training:
        refuse(f"attention dropout of {dropout} is not supported in training; set config.attention_dropout = 0.0")
    if not (getattr(module, "is_causal", True) if is_causal is None else is_causal):
        refuse("its attention is not causal")
    if s_aux is not None:
        refuse("attention sinks (s_aux) are not supported; use another model")
    if position_bias is not None:
        refuse("a position bias (position_bias) is not supported; use another model")
    if kwargs.get("output_attentions"):
        refuse("output_attentions=True is not supported; leave it out")


def no_mask(device: torch.device) -> Tensor:
    """What stands for the attention mask in a packed call: transformers leaves a mask of four dimensions alone.

    Without it every forward would look for packed sequences, on the device, and build the mask that is not needed.
    """
    return torch.ones((1, 1, 1, 1), dtype=torch.bool, device=device)


# Backends -------------------------------------------------------------------------------------------------------------


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
    first = {NAMES["flash_attention_2"]: ["flash_attn"], NAMES["flash_attention_3"]: ["flash_attn_3"]}
    for name in (*first.get(implementation, []), "varlen", "flash_attn", "sdpa"):
        if _cannot(name, query, value, window, softcap) is None:
            return name
    raise AssertionError("sdpa runs anywhere")


def _cannot(name: str, query: Tensor, value: Tensor, window: int | None, softcap: float | None) -> str | None:
    """Why a backend cannot run this call, or None."""
    if name == "sdpa":
        return None
    if query.device.type != "cuda":
        return f"it runs on CUDA, not on {query.device.type}"
    if query.dtype not in _HALF:
        return f"it takes fp16 and bf16, not {query.dtype}"
    if query.shape[-1] != value.shape[-1] or query.shape[-1] > 256:
        return f"head sizes {query.shape[-1]} and {value.shape[-1]} (it takes equal ones up to 256)"
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
    return None if importlib.util.find_spec(module) else f"{module} is not installed"


@functools.cache
def _varlen_parameters() -> frozenset[str] | None:
    try:
        from torch.nn.attention.varlen import varlen_attn
    except ImportError:
        return None
    return frozenset(inspect.signature(varlen_attn).parameters)


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


def _run_sdpa(q, k, v, paths: TreePaths, scaling, window, softcap) -> Tensor:
    """A loop over paths; `[T, Hq, D]`, gathered `[keys, Hkv, D]` to `[T, Hq, Dv]`."""
    groups = q.shape[1] // k.shape[1]
    run = _one_path if softcap is None else functools.partial(_one_path_softcapped, softcap=softcap)
    lengths_q, lengths_k = zip(*paths.lengths, strict=True)
    outputs = []
    for part_q, part_k, part_v in zip(q.split(lengths_q), k.split(lengths_k), v.split(lengths_k), strict=True):
        queries, keys = part_q.shape[0], part_k.shape[0]
        # [G, Hkv, L, D]: the heads of a group read the same keys, expanded without a copy
        part_q = part_q.view(queries, k.shape[1], groups, -1).permute(2, 1, 0, 3)
        part_k, part_v = (part.transpose(0, 1).expand(groups, -1, -1, -1) for part in (part_k, part_v))
        mask = None
        if queries != keys or window is not None and window < keys or softcap is not None:
            mask = visible(queries, keys, window, q.device)
        output = run(part_q, part_k, part_v, mask, scaling)
        outputs.append(output.permute(2, 1, 0, 3).flatten(1, 2))
    return torch.cat(outputs)


def visible(queries: int, keys: int, window: int | None, device: torch.device) -> Tensor:
    """bool `[queries, keys]`: causal, aligned at the bottom right; of those the last `window` keys."""
    mask = torch.ones(queries, keys, dtype=torch.bool, device=device).tril(keys - queries)
    return mask if window is None else mask.triu(keys - queries - window + 1)


def _one_path(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, scaling: float) -> Tensor:
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=mask is None, scale=scaling)


def _one_path_softcapped(q, k, v, mask: Tensor, scaling: float, *, softcap: float) -> Tensor:
    scores = softcap * torch.tanh(q @ k.transpose(-2, -1) * (scaling / softcap))
    wide = torch.promote_types(q.dtype, torch.float32)
    return scores.to(wide).masked_fill(~mask, -torch.inf).softmax(-1).to(q.dtype) @ v


_RUN: dict[str, Callable[..., Tensor]] = {
    "sdpa": _run_sdpa,
    "varlen": _run_varlen,
    "flash_attn": functools.partial(_run_flash, module="flash_attn"),
    "flash_attn_3": functools.partial(_run_flash, module="flash_attn_interface"),
}


# transformers ---------------------------------------------------------------------------------------------------------


def _own_attention(module: nn.Module) -> Callable:
    """transformers' attention that the model had before `install`; flash kernels are replaced by sdpa."""
    if module.config._attn_implementation == NAMES["eager"]:
        return sys.modules[type(module).__module__].eager_attention_forward
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    return ALL_ATTENTION_FUNCTIONS["sdpa"]


def _register() -> None:
    from transformers import AttentionInterface, AttentionMaskInterface
    from transformers.masking_utils import eager_mask, sdpa_mask

    for before, name in NAMES.items():
        AttentionInterface.register(name, tree_attention)
        AttentionMaskInterface.register(name, eager_mask if before == "eager" else sdpa_mask)


def is_installed(model: nn.Module) -> bool:
    """Whether the model's layers call `tree_attention`."""
    return getattr(model.config, "_attn_implementation", None) in NAMES.values()


def install(model: nn.Module) -> str | None:
    """Let a transformers model's layers call `tree_attention`; returns the name of what they called before.

    None, and nothing is changed, where the model does not take its attention from transformers' interface.
    """
    before = getattr(model.config, "_attn_implementation", None)
    if before in NAMES.values():
        return next(old for old, name in NAMES.items() if name == before)
    if before not in NAMES or not getattr(model, "_supports_attention_backend", False):
        return None
    _register()
    model.set_attn_implementation(NAMES[before])
    return before if is_installed(model) else None


def uninstall(model: nn.Module, before: str) -> None:
    """Give the model the attention back that it had before `install`."""
    for module in model.modules():
        config = getattr(module, "config", None)
        if getattr(config, "_attn_implementation", None) in NAMES.values():
            config._attn_implementation = before  # not by set_attn_implementation, which asks whether flash is there
