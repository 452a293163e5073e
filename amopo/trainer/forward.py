"""A causal LM's own forward, taught to return log-probs of a packed row.

Contract
--------
`patch_forward(model)` replaces the forward of a transformers causal LM (unwrapped from PEFT or DDP) on that instance:

- with `amopo_layout=layout` (a `TreeLayout`), `model(input_ids=[1, T], position_ids=[1, T], amopo_layout=layout)`
  runs the body, selects the layout's hidden rows (after the final norm) and returns their log-probs, one fp32 tensor
  [R] (fp64 for fp64 models). Logits [T, V] never exist. Its layers attend along the layout's paths
  (`amopo.packing.attention`, installed by `patch_forward`);
- any other call goes to the original forward, untouched: `generate()`, evaluation and saving work as before.

The log-probs are made inside the model's forward, so that wrappers which gather parameters or reduce gradients around
it (DDP, FSDP2, ZeRO-3, PEFT, autocast) see every parameter that is used. `PackedForward.remove()` restores the forward.

Models that do not take their attention from transformers' interface run rows without sharing only: transformers then
separates the sequences by their position ids, which it stops doing, silently, where an attention mask or a cache is
given. So `attention_mask` and `use_cache=True` raise (`amopo.trainer.packed_call`). `nn.DataParallel`
would scatter the row: a model inside it raises, and so does replicating a patched model. So do models that
`amopo.packing.support` refuses by name, or whose hidden states of a small packed row are not those of its sequences run
alone, or whose logits are not what their head makes of the body's output (8 tokens, twice).
"""

from __future__ import annotations

import inspect
import logging
import types
from typing import Any

import torch
from torch import Tensor, nn

from amopo.head import find_head, head_logps, unwrap
from amopo.head_adapters import check_adapters
from amopo.packing import attention
from amopo.packing.attention import text_config
from amopo.packing.layout import TreeLayout
from amopo.packing.support import check_packed_row, check_packing_support, check_position_ids
from amopo.packing.windows import check_untold_windows
from amopo.trainer.packed_call import packed_call, uses_flash
from amopo.trainer.patch_options import PatchOptions
from amopo.trainer.replaced_forward import ReplacedForward, call_on

logger = logging.getLogger(__name__)
# Difference in nats, per unit of the largest logit, that rounding alone can explain; TF32 counts as fp32.
_ROUNDING = {torch.float64: 1e-6, torch.float32: 2e-3}


def causal_lm(model: nn.Module) -> nn.Module:
    """The causal LM inside `model`: torch.compile, DDP-like and PEFT wrappers are taken off."""
    model = model._modules.get("_orig_mod", model)
    if isinstance(model, nn.DataParallel):
        raise ValueError(
            "nn.DataParallel cannot run packed rows (it would cut the one row of a batch into pieces); start one "
            "process per device with torchrun instead"
        )
    return unwrap(model)


def _takes_keywords(body: nn.Module) -> bool:
    """Whether the body hands arguments that it does not know on to its layers."""
    parameters = inspect.signature(body.forward).parameters.values()
    return any(parameter.kind == inspect.Parameter.VAR_KEYWORD for parameter in parameters)


def runs_alone(body: nn.Module) -> bool:
    """Whether the body can run outside of its wrappers: no weight is sharded away, a DTensor, or not loaded."""
    return all(type(p.data) is Tensor and p.numel() > 0 and not p.is_meta for p in body.parameters())


def _why_not_tried(owner: nn.Module, body: nn.Module, *, has_own_flash: bool) -> str | None:
    """Why a small row cannot be run through the model as it is now, or None."""
    if not runs_alone(body):
        return "the weights are sharded or not loaded"
    weight = body.get_input_embeddings().weight
    if has_own_flash and not (weight.is_cuda and weight.dtype in (torch.float16, torch.bfloat16)):
        return f"{type(owner).__name__}'s flash attention runs in half precision on a GPU only"
    return None


class PackedForward(ReplacedForward):
    """What `patch_forward` installed: a forward, and the attention of the layers."""

    replaced_by = "patch_forward"

    def __init__(self, owner: nn.Module, attention_before: str | None) -> None:
        super().__init__(owner)
        self._attention_before = attention_before

    def _removed(self) -> None:
        if self._attention_before is not None:
            attention.uninstall(self.owner, self._attention_before)


def patch_forward(
    model: nn.Module,
    *,
    logits_dtype: torch.dtype | str | None = None,
    budget: int | None = None,
    tensor_parallel: Any = None,
    allow_unwrapped: bool = False,
) -> PackedForward:
    """Teach `model`'s forward the argument `amopo_layout`, and its layers the attention over a packed row.

    Args:
        model: a transformers causal LM, bare or wrapped by PEFT or DDP.
        logits_dtype, budget: as in `amopo.linear_logprobs`.
        tensor_parallel: the process group whose ranks hold rows of the lm_head, where it is sharded so by hand or by
            `parallelize_module`; transformers' own tensor parallelism is recognised.
        allow_unwrapped: on several ranks, run outside of wrappers too: gradients are reduced by other means.
    """
    options = PatchOptions(logits_dtype, budget, tensor_parallel, allow_unwrapped)
    owner = causal_lm(model)
    check_packing_support(model if hasattr(model, "peft_config") else owner)
    options.check(owner)
    body = find_head(owner).body
    check_adapters(owner)
    check_position_ids(body)
    was_installed = attention.is_installed(owner)
    before = attention.install(owner) if _takes_keywords(body) else None
    try:
        reason = _why_not_tried(owner, body, has_own_flash=before is None and uses_flash(owner))
        if reason is not None:
            if before is not None:
                check_untold_windows(text_config(owner))
            logger.warning("%s: it was not tried whether a packed row is exact", reason)
        else:
            device = body.get_input_embeddings().weight.device
            check_packed_row(body, vocab_size=text_config(owner).vocab_size, device=device, shares=before is not None)
            if runs_alone(owner) and tensor_parallel is None:
                check_head(owner)
    except BaseException:
        if before is not None and not was_installed:
            attention.uninstall(owner, before)
        raise
    previous = owner.__dict__.get("forward")

    def forward(self: nn.Module, *args: Any, amopo_layout: TreeLayout | None = None, **kwargs: Any) -> Any:
        if amopo_layout is not None:
            return packed_call(self, amopo_layout, args, kwargs, options)
        # Looked up through the instance, not captured: copies of the model then run their own weights.
        if previous is None:
            return type(self).forward(self, *args, **kwargs)
        return call_on(self, previous, owner, args, kwargs)

    # The signature is copied by hand: functools.wraps would set __wrapped__, which accelerate follows when it unwraps
    # mixed precision, and so drop this function.
    original = previous or types.MethodType(type(owner).forward, owner)
    receiver = inspect.Parameter("self", inspect.Parameter.POSITIONAL_ONLY)
    signature = inspect.signature(original)
    forward.__signature__ = signature.replace(  # type: ignore[attr-defined]
        parameters=[receiver, *signature.parameters.values()]
    )
    forward.__doc__ = original.__doc__
    handle = PackedForward(owner, None if was_installed else before)
    handle.install(types.MethodType(forward, owner))
    return handle


@torch.no_grad()
def check_head(model: nn.Module) -> None:
    """Raise if `head_logps` of the body's hidden states is not the log-softmax of the causal LM's own logits.

    That is so where something that `find_head` does not know of stands between body and head, or changes the logits.
    8 random tokens, in eval mode; the global random number generators are not used.
    """
    head = find_head(model)
    embedding = head.body.get_input_embeddings().weight
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randint(text_config(model).vocab_size, (1, 8), generator=generator).to(embedding.device)
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        logits = model(input_ids=tokens, use_cache=False).logits[0].double()
        hidden = head.body(input_ids=tokens, use_cache=False).last_hidden_state[0]
        got = head_logps(head.lm_head, hidden, tokens[0], logit_scale=head.logit_scale, softcap=head.softcap)
    finally:
        for module, mode in modes:
            module.training = mode
    expected = logits.log_softmax(-1).gather(1, tokens[0].to(logits.device)[:, None])[:, 0]
    difference = (got.double().to(expected.device) - expected).abs().max().item()
    allowed = _ROUNDING.get(hidden.dtype, 2e-2) * max(1.0, logits.abs().max().item())
    if not difference <= allowed:
        raise ValueError(
            f"{type(model).__name__} computes its logits in a way that is not supported: its own log-probs differ from "
            f"those of lm_head on the body's hidden states by {difference:.1e} nats, more than the {allowed:.0e} of "
            "rounding; something between body and lm_head, or after it, would be skipped. Use another model"
        )


def is_patched(model: nn.Module) -> bool:
    """Whether `model`'s forward takes `amopo_layout` already."""
    forward = causal_lm(model).__dict__.get("forward")
    while forward is not None:
        function = getattr(forward, "__func__", forward)
        if "amopo_layout" in getattr(getattr(function, "__code__", None), "co_varnames", ()):
            return True
        forward = getattr(function, "__wrapped__", None)
    return False
