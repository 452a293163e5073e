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

Which kernel computes it: see `attention_backends`. A call without `amopo_paths` (generation, one text) is transformers'
own attention: what the model had, or sdpa where it had a flash kernel.

Unsupported (raises): attention dropout while training, attention sinks, position biases, top-k indices and other
tensors that a layer passes, attention that is not causal, an attention mask or a cache beside a packed row.
"""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from amopo.packing.attention_backends import RAN, RUN, choose_backend
from amopo.packing.layout import TreePaths
from amopo.packing.windows import WATCH, watched
from amopo_kernels.gather import gather_rows

# What a model's attention is called before and after `install`. A name with "flash" in it would make transformers look
# for a kernel on the hub.
NAMES = {
    "sdpa": "amopo_tree",
    "eager": "amopo_tree_eager",
    "flash_attention_2": "amopo_tree_fa2",
    "flash_attention_3": "amopo_tree_fa3",
}
_KNOWN_TENSORS = ("position_ids", "cache_position", "position_embeddings")


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
        if (watch := WATCH.get()) is not None:
            watch.see_call(module, attention_mask, sliding_window)
        return _own_attention(module)(module, query, key, value, attention_mask, **given)
    _check_call(module, query, key, attention_mask, dropout, is_causal, s_aux, position_bias, amopo_paths, kwargs)
    # Rotary embeddings stay in fp32 under autocast and lift queries and keys; SDPA casts them back by itself.
    dtype = value.dtype
    if torch.is_autocast_enabled(query.device.type) and dtype != torch.float64:
        dtype = torch.get_autocast_dtype(query.device.type)
    query, key, value = (part.to(dtype) for part in (query, key, value))
    window = None if sliding_window is None or sliding_window >= amopo_paths.max_seqlen_k else sliding_window
    scaling = query.shape[-1] ** -0.5 if scaling is None else scaling
    queries, keys, values = (part[0].transpose(0, 1) for part in (query, key, value))  # [T, H, D]
    if amopo_paths.keys is not None:
        keys, values = gather_rows(keys, amopo_paths.keys), gather_rows(values, amopo_paths.keys)
    name = choose_backend(module, query, value, window=window, softcap=softcap)
    RAN.add(name)
    output = RUN[name](queries, keys, values, amopo_paths, scaling, window, softcap)
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
    for name, argument in kwargs.items():
        # What a layer is told of packed rows, position ids and the like is not for its attention; a tensor it did not
        # get from there (top-k indices, block tables, sinks) is.
        if isinstance(argument, Tensor) and name not in _KNOWN_TENSORS:
            refuse(f"its layer passes {name}, which is not supported; use another model")


def no_mask(device: torch.device) -> Tensor:
    """What stands for the attention mask in a packed call: transformers leaves a mask of four dimensions alone.

    Without it every forward would look for packed sequences, on the device, and build the mask that is not needed.
    """
    return torch.ones((1, 1, 1, 1), dtype=torch.bool, device=device)


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
        AttentionMaskInterface.register(name, watched(eager_mask if before == "eager" else sdpa_mask))


def text_config(model: nn.Module) -> Any:
    """The configuration of the language model, also where it is part of a larger one."""
    return model.config.get_text_config() if hasattr(model.config, "get_text_config") else model.config


def is_installed(model: nn.Module) -> bool:
    """Whether the model's layers call `tree_attention`."""
    return getattr(text_config(model), "_attn_implementation", None) in NAMES.values()


def install(model: nn.Module) -> str | None:
    """Let a transformers model's layers call `tree_attention`; returns the name of what they called before.

    None, and nothing is changed, where the model does not take its attention from transformers' interface.
    """
    before = getattr(text_config(model), "_attn_implementation", None)
    if before in NAMES.values():
        return next(old for old, name in NAMES.items() if name == before)
    if before not in NAMES or not getattr(model, "_supports_attention_backend", False) or _asks_for_sdpa(model):
        return None
    _register()
    for config in _text_configs(model):
        config._attn_implementation = NAMES[before]
    return before


def uninstall(model: nn.Module, before: str) -> None:
    """Give the model the attention back that it had before `install`."""
    for config in _text_configs(model):
        config._attn_implementation = before


def _text_configs(model: nn.Module) -> list[Any]:
    """The configurations that the language model's layers read: not those of towers for images or sound."""
    text = text_config(model)
    is_read = text is model.config or any(getattr(module, "config", None) is text for module in model.modules())
    return [text] if is_read else [text, model.config]


def _asks_for_sdpa(model: nn.Module) -> bool:
    """Whether the model's own code compares the name of its attention with "sdpa": it would not know ours."""
    module = sys.modules.get(type(model).__module__)
    try:
        return '_attn_implementation == "sdpa"' in inspect.getsource(module)
    except (OSError, TypeError):
        return False
