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
given. So `attention_mask` and `use_cache=True` raise, and `use_cache=False` is always passed on. `nn.DataParallel`
would scatter the row: it raises, and so do models that `amopo.packing.support` refuses by name, or whose hidden states
of a small packed row are not those of its sequences run alone, or whose logits are not what their head makes of the
body's output (8 tokens, twice).
"""

from __future__ import annotations

import inspect
import logging
import types
from collections.abc import Callable
from typing import Any, NamedTuple, Self

import torch
from torch import Tensor, nn

from amopo.head import Head, find_head, head_logps, unwrap
from amopo.head_adapters import check_adapters
from amopo.packing import attention
from amopo.packing.attention import text_config
from amopo.packing.layout import TreeLayout
from amopo.packing.support import check_packed_row, check_packing_support, check_position_ids
from amopo.packing.windows import check_untold_windows
from amopo.trainer.wrapping import check_wrapped
from amopo_kernels.checks import check_budget
from amopo_kernels.gather import gather_rows
from amopo_kernels.workspace import workspace_bytes

logger = logging.getLogger(__name__)
# The input's own dtype is as good as "input"; which one that is shows under autocast only.
_LOGITS_DTYPES = (None, "input", torch.float32, torch.bfloat16, torch.float16, torch.float64)

# Difference in nats, per unit of the largest logit, that rounding alone can explain; TF32 counts as fp32.
_ROUNDING = {torch.float64: 1e-6, torch.float32: 2e-3}

# Arguments of a causal LM's forward that a packed call may carry, with the only values that change nothing.
_HARMLESS = {"use_cache": (None, False), "return_dict": (None, True), "logits_to_keep": (None, 0)}


def causal_lm(model: nn.Module) -> nn.Module:
    """The causal LM inside `model`: torch.compile, DDP-like and PEFT wrappers are taken off."""
    model = model._modules.get("_orig_mod", model)
    if isinstance(model, nn.DataParallel):
        raise ValueError(
            "nn.DataParallel cannot run packed rows (it would cut the one row of a batch into pieces); start one "
            "process per device with torchrun instead"
        )
    return unwrap(model)


def _uses_flash(model: nn.Module) -> bool:
    return str(getattr(model.config, "_attn_implementation", "")).startswith("flash_attention")


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


class HeadOptions(NamedTuple):
    """The keyword arguments of `patch_forward` and `amopo.patch`."""

    logits_dtype: torch.dtype | str | None
    budget: int | None
    tensor_parallel: Any
    allow_unwrapped: bool

    def check(self, model: nn.Module) -> None:
        """Raise now for what the first call would raise; `model` is a causal LM."""
        if self.logits_dtype not in _LOGITS_DTYPES:
            raise ValueError(f'logits_dtype must be None, "input" or torch.float32, got {self.logits_dtype!r}')
        group = self.tensor_parallel
        if group is not None and not hasattr(group, "size"):
            raise TypeError(f"tensor_parallel must be a process group, got {type(group).__name__}")
        check_budget(self.budget)
        weight = getattr(find_head(model).lm_head, "weight", None)
        if self.budget is not None and group is None and weight is not None and weight.numel() > 0:
            shape = (1, weight.shape[1], weight.shape[0])
            workspace_bytes(shape, weight.dtype, self.budget, frozen=True, device=weight.device)  # the least there is


class ReplacedForward:
    """The handle of a forward that was replaced on an instance; a context manager that removes it at the end."""

    replaced_by = ""  # who replaced it, for the message

    def __init__(self, owner: nn.Module, previous: Callable | None) -> None:
        self.owner = owner
        self._previous = previous
        self._installed: Callable | None = owner.__dict__.get("forward")

    def remove(self) -> None:
        """Restore the forward that was there before; a second call does nothing."""
        if self._installed is None:
            return
        if self.owner.__dict__.get("forward") is not self._installed:
            raise RuntimeError(
                f"the forward of {type(self.owner).__name__} was replaced again after {self.replaced_by} (by "
                "accelerate's mixed precision, for example); remove that first"
            )
        if self._previous is None:
            del self.owner.forward
        else:
            self.owner.forward = self._previous
        self._installed = None
        self._removed()

    def _removed(self) -> None:
        """What else is put back once the forward is."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.remove()


class PackedForward(ReplacedForward):
    """What `patch_forward` installed: a forward, and the attention of the layers."""

    replaced_by = "patch_forward"

    def __init__(self, owner: nn.Module, previous: Callable | None, attention_before: str | None) -> None:
        super().__init__(owner, previous)
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
    options = HeadOptions(logits_dtype, budget, tensor_parallel, allow_unwrapped)
    owner = causal_lm(model)
    check_packing_support(model if hasattr(model, "peft_config") else owner)
    options.check(owner)
    body = find_head(owner).body
    check_adapters(owner)
    check_position_ids(body)
    was_installed = attention.is_installed(owner)
    before = attention.install(owner) if _takes_keywords(body) else None
    try:
        reason = _why_not_tried(owner, body, has_own_flash=before is None and _uses_flash(owner))
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
            return _packed_forward(self, amopo_layout, args, kwargs, options)
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
    owner.forward = types.MethodType(forward, owner)
    return PackedForward(owner, previous, None if was_installed else before)


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


def call_on(model: nn.Module, forward: Callable, owner: nn.Module, args: tuple, kwargs: dict[str, Any]) -> Any:
    """`forward(*args, **kwargs)`, a forward that stood on `owner`, on `model`: `owner` itself, or a copy of it.

    A copy takes the functions of the original with it, and a method bound to the original would run its weights.
    """
    if getattr(forward, "__self__", None) is owner:
        return forward.__func__(model, *args, **kwargs)
    return forward(*args, **kwargs)


def is_patched(model: nn.Module) -> bool:
    """Whether `model`'s forward takes `amopo_layout` already."""
    forward = causal_lm(model).__dict__.get("forward")
    while forward is not None:
        function = getattr(forward, "__func__", forward)
        if "amopo_layout" in getattr(getattr(function, "__code__", None), "co_varnames", ()):
            return True
        forward = getattr(function, "__wrapped__", None)
    return False


def _packed_forward(
    model: nn.Module,
    layout: TreeLayout,
    args: tuple,
    kwargs: dict[str, Any],
    options: HeadOptions,
) -> Tensor:
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
def _row_logps(head: Head, hidden: Tensor, layout: TreeLayout, options: HeadOptions) -> Tensor:
    hidden = hidden.reshape(-1, hidden.shape[-1])
    rows = hidden.index_select(0, layout.row_index) if layout.rows is None else gather_rows(hidden, layout.rows)
    return head_logps(
        head.lm_head,
        rows,
        layout.row_target,
        logit_scale=head.logit_scale,
        softcap=head.softcap,
        logits_dtype=options.logits_dtype,
        tensor_parallel=options.tensor_parallel,
        budget=options.budget,
    )


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
    if not _uses_flash(model):
        return {"attention_mask": None}
    # flash attention would otherwise look for the boundaries in every layer, with a sync each
    return {
        "attention_mask": None,
        "cu_seq_lens_q": paths.cu_seqlens_q,
        "cu_seq_lens_k": paths.cu_seqlens_q,
        "max_length_q": paths.max_seqlen_q,
        "max_length_k": paths.max_seqlen_q,
    }
