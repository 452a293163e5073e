"""`amopo.patch(model)`: a causal LM's forward returns per-token log-probs, and no logits exist.

Contract
--------
After `patch(model)`, on that instance, wrapped afterwards by DDP, FSDP2, PEFT, accelerate or torch.compile as you like:

- `model(input_ids=[B, L], attention_mask=[B, L], labels=[B, L])` -> fp32 `[B, L]` (fp64 for fp64 models): at the place
  of each label its log-prob given the tokens before it, 0 where the label is -100 (and in column 0, which nothing
  predicts). Labels are token ids, not shifted; `shift_labels=[B, L]` are shifted already, and the result stands where
  they stand. Only labelled positions enter the head.
- `model(input_ids=[1, T], position_ids=[1, T], amopo_layout=layout)` -> fp32 `[R]`, one per row of the layout, for
  batches made by `amopo.pack`. A model whose sequences cannot be packed says why when it is given a layout.
- any other call goes to the model's own forward: `generate()`, evaluation, saving work as before.

`amopo.loss_from_logps` makes the loss of either. `patch` returns a handle; `handle.remove()` or the end of a `with`
block restores the model. Everything runs inside the model's forward, through the head module, so that wrappers which
gather weights or reduce gradients see every parameter that is used.

Keeps in memory: the body's activations, the selected hidden rows, and what the head keeps (`amopo.workspace_bytes`).

Unsupported (raises): what `amopo.head` refuses about heads and adapters, models whose logits are more than their head
makes of the body's output (tried on 8 tokens), caches, hidden states or attentions beside labels, `nn.DataParallel`,
put around the model before or after.
"""

from __future__ import annotations

import inspect
import logging
import types
from typing import Any

import torch
from torch import Tensor, nn

from amopo.head import Head, find_head
from amopo.head_adapters import check_adapters
from amopo.packing.layout import TreeLayout
from amopo.padded import label_places, select_rows
from amopo.trainer.forward import PackedForward, causal_lm, check_head, patch_forward, runs_alone
from amopo.trainer.patch_options import PatchOptions
from amopo.trainer.replaced_forward import ReplacedForward, call_on
from amopo.trainer.wrapping import check_wrapped

logger = logging.getLogger(__name__)

IGNORE = -100
# Arguments that ask for what is not made here, with the values that ask for nothing.
_NOT_MADE = {
    "use_cache": (False,),
    "past_key_values": (),
    "output_hidden_states": (False,),
    "output_attentions": (False,),
    "output_router_logits": (False,),
    "return_dict": (True,),
    "logits_to_keep": (0,),
    "num_items_in_batch": (),
}


class Patch(ReplacedForward):
    """The handle of a patched model; a context manager that restores the model at the end.

    `why_not_packed`: why the model takes no layouts, or None if it does.
    """

    replaced_by = "amopo.patch"

    def __init__(self, owner: nn.Module, packed: PackedForward | None, why_not_packed: str | None) -> None:
        super().__init__(owner)
        self.why_not_packed = why_not_packed
        self._packed = packed

    def _removed(self) -> None:
        if self._packed is not None:
            self._packed.remove()


def patch(
    model: nn.Module,
    *,
    logits_dtype: torch.dtype | str | None = None,
    budget: int | None = None,
    tensor_parallel: Any = None,
    allow_unwrapped: bool = False,
) -> Patch:
    """Teach `model`'s forward to return log-probs for `labels=`, `shift_labels=` or `amopo_layout=`.

    Args:
        model: a transformers causal LM, bare or wrapped by PEFT, DDP or torch.compile.
        logits_dtype, budget: as in `amopo.linear_logprobs`. tensor_parallel, allow_unwrapped: as in `patch_forward`.
    Raises:
        ValueError, TypeError: no causal LM, or a head that would be computed wrongly.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"patch takes a loaded causal LM, got {type(model).__name__}; load it with from_pretrained")
    options = PatchOptions(logits_dtype, budget, tensor_parallel, allow_unwrapped)
    owner = causal_lm(model)
    find_head(owner)
    check_adapters(owner)
    options.check(owner)
    packed, why_not = None, None
    try:
        packed = patch_forward(model, **options._asdict())
    except ValueError as error:
        why_not = str(error)
        if runs_alone(owner) and tensor_parallel is None:
            check_head(owner)  # what cannot be right with labels either raises here
        else:
            logger.warning("%s: it was not tried whether the head is exact", type(owner).__name__)
    handle = Patch(owner, packed, why_not)
    before = owner.__dict__.get("forward")
    names = list(inspect.signature(type(owner).forward).parameters)[1:]

    def forward(
        self: nn.Module,
        *args: Any,
        labels: Tensor | None = None,
        shift_labels: Tensor | None = None,
        amopo_layout: TreeLayout | None = None,
        **kwargs: Any,
    ) -> Any:
        if args and "labels" in names[: len(args)]:
            raise ValueError("pass labels by name: model(input_ids, ..., labels=labels)")
        if amopo_layout is not None:
            if labels is not None or shift_labels is not None:
                raise ValueError("pass labels, shift_labels or amopo_layout, not two of them")
            if why_not is not None:
                raise ValueError(f"this model takes labels, not layouts: {why_not}")
            kwargs["amopo_layout"] = amopo_layout
        elif labels is not None or shift_labels is not None:
            kwargs.update(zip(names, args, strict=False))
            return _logps(self, labels, shift_labels, kwargs, options)
        # Looked up through the instance, not captured: copies of the model then run their own weights.
        if before is None:
            return type(self).forward(self, *args, **kwargs)
        return call_on(self, before, owner, args, kwargs)

    # The signature by hand: functools.wraps would set __wrapped__, through which accelerate would drop this function.
    forward.__signature__ = inspect.signature(type(owner).forward)  # type: ignore[attr-defined]
    forward.__doc__ = type(owner).forward.__doc__
    handle.install(types.MethodType(forward, owner))
    return handle


def _logps(
    model: nn.Module,
    labels: Tensor | None,
    shift_labels: Tensor | None,
    kwargs: dict[str, Any],
    options: PatchOptions,
) -> Tensor:
    if not options.allow_unwrapped:
        check_wrapped(model)
    if labels is not None and shift_labels is not None:
        raise ValueError("pass labels (unshifted) or shift_labels, not both")
    given = labels if labels is not None else shift_labels
    arguments = _body_arguments(kwargs, given)
    head = find_head(model)
    output = head.body(**arguments, use_cache=False)
    hidden = output.last_hidden_state if hasattr(output, "last_hidden_state") else output[0]
    return _scattered_logps(head, hidden, given, labels is None, options)


# torch.compile would stop here anyway, to count the labels, and compile the head anew for every count.
@torch.compiler.disable
def _scattered_logps(
    head: Head,
    hidden: Tensor,
    labels: Tensor,
    shifted: bool,
    options: PatchOptions,
) -> Tensor:
    if tuple(hidden.shape[:2]) != tuple(labels.shape):
        raise ValueError(f"labels are {tuple(labels.shape)}, but the hidden states {tuple(hidden.shape)}")
    labels = labels.to(hidden.device, non_blocking=True)
    rows = select_rows(labels, shifted=shifted, ignore_index=IGNORE)
    logps = options.logps(head, hidden.reshape(-1, hidden.shape[-1]).index_select(0, rows.index), rows.target)
    places = label_places(rows, labels.shape[1], labels.shape[1], shifted=shifted).to(logps.device)
    # Not a view: an in-place operation on one would drop the hook by which FSDP2 gathers the weights for the backward.
    return logps.new_zeros(labels.shape).index_put((places // labels.shape[1], places % labels.shape[1]), logps)


def _body_arguments(kwargs: dict[str, Any], labels: Tensor) -> dict[str, Any]:
    """What the body is given, after the labels and everything that asks for more than log-probs were looked at."""
    if not isinstance(labels, Tensor) or labels.dim() != 2 or labels.dtype not in (torch.int64, torch.int32):
        shape = f"{labels.dtype} {tuple(labels.shape)}" if isinstance(labels, Tensor) else type(labels).__name__
        raise TypeError(f"labels must be an integer tensor [B, L], got {shape}")
    arguments = {name: value for name, value in kwargs.items() if value is not None}
    tokens = arguments.get("input_ids", arguments.get("inputs_embeds"))
    if tokens is None:
        raise ValueError("a call with labels needs input_ids [B, L] (or inputs_embeds [B, L, H])")
    if tuple(tokens.shape[:2]) != tuple(labels.shape):
        raise ValueError(
            f"labels must have the shape of input_ids, {tuple(tokens.shape[:2])}, got {tuple(labels.shape)}"
        )
    mask = arguments.get("attention_mask")
    if isinstance(mask, Tensor) and mask.dim() == 2 and mask.shape != labels.shape:
        raise ValueError(
            f"attention_mask must have the shape of input_ids, {tuple(labels.shape)}, got {tuple(mask.shape)}"
        )
    for name, harmless in _NOT_MADE.items():
        value = arguments.pop(name, None)
        if value is not None and name != "num_items_in_batch" and not any(value is h or value == h for h in harmless):
            raise ValueError(f"{name}={value!r} has no meaning beside labels: log-probs alone are made; leave it out")
    return arguments
