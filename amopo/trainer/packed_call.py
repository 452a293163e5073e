"""One packed row through a causal LM: body, the layout's rows of hidden states, head.

`packed_call(model, layout, args, kwargs, options)` -> log-probs [R]. Everything else that a call may carry is absent or
changes nothing, or it raises: `attention_mask` and `use_cache=True` would make transformers let the sequences of a row
see each other. `use_cache=False` is always passed on.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from amopo.head import Head, find_head
from amopo.packing import attention
from amopo.packing.attention import text_config
from amopo.packing.layout import TreeLayout
from amopo.trainer.patch_options import PatchOptions
from amopo.trainer.wrapping import check_wrapped
from amopo_kernels.gather import gather_rows

# Arguments of a causal LM's forward that a packed call may carry, with the only values that change nothing.
_HARMLESS = {"use_cache": (None, False), "return_dict": (None, True), "logits_to_keep": (None, 0)}


def uses_flash(model: nn.Module) -> bool:
    """Whether the layers call a flash attention of transformers' own."""
    return str(getattr(model.config, "_attn_implementation", "")).startswith("flash_attention")


def packed_call(
    model: nn.Module,
    layout: TreeLayout,
    args: tuple,
    kwargs: dict[str, Any],
    options: PatchOptions,
) -> Tensor:
    """Log-probs [R] of the layout's rows; `args` and `kwargs` are those of the causal LM's forward."""
    if not options.allow_unwrapped:
        check_wrapped(model)
    input_ids, position_ids = _packed_arguments(args, kwargs, layout, model)
    head = find_head(model)
    output = head.body(
        input_ids=input_ids,
        position_ids=position_ids,
        use_cache=False,
        **_attention_arguments(model, layout, input_ids),
    )
    hidden = output.last_hidden_state if hasattr(output, "last_hidden_state") else output[0]
    return _row_logps(head, hidden, layout, options)


# torch.compile would compile the head anew for every number of rows, and there is nothing left in it to fuse.
@torch.compiler.disable
def _row_logps(head: Head, hidden: Tensor, layout: TreeLayout, options: PatchOptions) -> Tensor:
    hidden = hidden.reshape(-1, hidden.shape[-1])
    rows = hidden.index_select(0, layout.row_index) if layout.rows is None else gather_rows(hidden, layout.rows)
    return options.logps(head, rows, layout.row_target)


def _packed_arguments(
    args: tuple, kwargs: dict[str, Any], layout: TreeLayout, model: nn.Module
) -> tuple[Tensor, Tensor]:
    """`input_ids` and `position_ids`, after everything else was found to be absent or harmless."""
    if not isinstance(layout, TreeLayout):
        raise TypeError(f"amopo_layout takes the layout of amopo.pack (batch.layout), got {type(layout).__name__}")
    if args:
        raise ValueError("a packed call takes keyword arguments only: input_ids=, position_ids=, amopo_layout=")
    given = {name: value for name, value in kwargs.items() if value is not None}
    input_ids, position_ids = given.pop("input_ids", None), given.pop("position_ids", None)
    if input_ids is None or position_ids is None:
        raise ValueError("a packed call needs input_ids and position_ids, both [1, T] as made by amopo.pack")
    if given.get("attention_mask") is not None or given.get("use_cache"):
        name = "attention_mask" if given.get("attention_mask") is not None else "use_cache=True"
        raise ValueError(
            f"{name} must not be passed with a packed row: transformers would then let its sequences see each other; "
            "leave it out"
        )
    for name, value in given.items():
        if value is not False and not (name in _HARMLESS and value in _HARMLESS[name]):
            raise ValueError(f"a packed call does not support the argument {name}; leave it out")
    if input_ids.dim() != 2 or input_ids.shape[0] != 1 or input_ids.shape != position_ids.shape:
        raise ValueError(
            f"a packed row is [1, T]: got input_ids {tuple(input_ids.shape)} and position_ids "
            f"{tuple(position_ids.shape)}"
        )
    vocab_size = getattr(text_config(model), "vocab_size", None)
    if vocab_size is not None and layout.max_target >= vocab_size:
        raise ValueError(
            f"target token {layout.max_target} is outside the model's vocabulary of {vocab_size}; was another "
            "tokenizer used?"
        )
    return input_ids, position_ids


def _attention_arguments(model: nn.Module, layout: TreeLayout, input_ids: Tensor) -> dict[str, Any]:
    """What the body's attention is told of the layout."""
    paths = layout.paths
    if paths is None:
        raise ValueError("the layout has no paths; make it with amopo.pack")
    if attention.is_installed(model):
        # it compares the row with its paths, after sequence parallelism has put the row together
        return {"attention_mask": attention.no_mask(input_ids.device), "amopo_paths": paths}
    if layout.is_shared:
        raise ValueError(
            f"{type(model).__name__} does not take its attention from transformers' interface, so its sequences cannot "
            "share tokens; pack with sharing='none'"
        )
    if paths.subtree_end.shape[0] != input_ids.shape[1]:
        raise ValueError(
            f"the layout is of one row of {paths.subtree_end.shape[0]} tokens, but input_ids has {input_ids.shape[1]}; "
            "pass the three of one PackedBatch"
        )
    if not uses_flash(model):
        return {"attention_mask": None}
    # flash attention would otherwise look for the boundaries in every layer, with a sync each
    return {
        "attention_mask": None,
        "cu_seq_lens_q": paths.cu_seqlens_q,
        "cu_seq_lens_k": paths.cu_seqlens_q,
        "max_length_q": paths.max_seqlen_q,
        "max_length_k": paths.max_seqlen_q,
    }
