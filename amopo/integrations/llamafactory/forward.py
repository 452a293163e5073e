"""Log-probs of the labels of a padded batch, from inside a causal LM's own forward.

Contract
--------
After `patch_logps(model)`, `label_logps(model, batch, labels)` calls `model(**batch, amopo_labels=labels)`, through
whatever wraps it (PEFT, DDP, FSDP, ZeRO-3, autocast), and gets

    logps    fp32 [N] (fp64 for fp64 models): of every label that is not -100, row by row
    offsets  int64 [rows + 1]: row r owns logps[offsets[r]:offsets[r + 1]]

`batch` is padded, `[rows, length]` with its attention mask; labels are token ids, not shifted. Only positions that
predict a label enter the head; no logits exist. Any other call goes to the model's own forward.

This needs nothing of transformers but a causal LM with a body and a linear head, so it works with the versions that
LLaMA-Factory and axolotl pin, which are too old for packed rows. Kept in memory: the body's activations, the selected
hidden rows `[N, H]`, and what the head keeps (`amopo.workspace_bytes`).

Raises for what `amopo.head` and `amopo.head_adapters` refuse, for a call on several ranks outside of any wrapper, whose
gradients nothing would reduce, for `nn.DataParallel` around the model before or after, and for a model whose logits are
not what its head makes of the body's output (tried on 8 tokens, unless its weights are sharded or not loaded yet).
"""

from __future__ import annotations

import inspect
import logging
import types
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from amopo.head import find_head, head_logps
from amopo.head_adapters import check_adapters
from amopo.padded import select_rows
from amopo.trainer.forward import causal_lm, check_head
from amopo.trainer.replaced_forward import ReplacedForward, call_on
from amopo.trainer.wrapping import check_wrapped

IGNORE_INDEX = -100
ARGUMENT = "amopo_labels"
logger = logging.getLogger(__name__)


class LogpsForward(ReplacedForward):
    """The handle of a replaced forward."""

    replaced_by = "patch_logps"

    def install(self, forward: Callable) -> None:
        """Put `forward` on the instance."""
        super().install(forward)
        self.owner._amopo_logps = self

    def _removed(self) -> None:
        del self.owner._amopo_logps


def patch_logps(model: nn.Module) -> LogpsForward:
    """Teach a causal LM's forward the argument `amopo_labels`; a model that knows it already keeps what it has."""
    owner = causal_lm(model)
    installed = owner.__dict__.get("_amopo_logps")
    if isinstance(installed, LogpsForward):
        return installed
    find_head(owner)
    check_adapters(owner, training=any(parameter.requires_grad for parameter in owner.parameters()))
    if _is_whole(owner):
        check_head(owner)
    else:
        logger.warning("%s: weights are sharded or not loaded, so the head was not tried", type(owner).__name__)
    previous = owner.__dict__.get("forward")

    def forward(self: nn.Module, *args: Any, amopo_labels: Tensor | None = None, **kwargs: Any) -> Any:
        if amopo_labels is not None:
            if args:
                raise ValueError(f"a call with {ARGUMENT} takes keyword arguments only")
            return _logps_forward(self, amopo_labels, kwargs)
        # Looked up through the instance, not captured: copies of the model then run their own weights.
        if previous is None:
            return type(self).forward(self, *args, **kwargs)
        return call_on(self, previous, owner, args, kwargs)

    # The signature by hand: functools.wraps would set __wrapped__, through which accelerate would drop this function.
    original = previous or types.MethodType(type(owner).forward, owner)
    receiver = inspect.Parameter("self", inspect.Parameter.POSITIONAL_ONLY)
    signature = inspect.signature(original)
    forward.__signature__ = signature.replace(parameters=[receiver, *signature.parameters.values()])  # type: ignore[attr-defined]
    forward.__doc__ = original.__doc__
    handle = LogpsForward(owner)
    handle.install(types.MethodType(forward, owner))
    return handle


def label_logps(model: nn.Module, batch: Mapping[str, Any], labels: Tensor) -> tuple[Tensor, Tensor]:
    """`logps [N]` and `offsets [rows + 1]` of a patched model, wrapped or not."""
    result = model(**batch, **{ARGUMENT: labels})
    if not isinstance(result, tuple) or len(result) != 2:
        raise TypeError(f"the model returned {type(result).__name__} for {ARGUMENT}; was it patched with patch_logps?")
    logps, offsets = result
    if logps.dtype not in (torch.float32, torch.float64):
        raise TypeError(f"log-probs came back as {logps.dtype}: a wrapper casts the model's outputs; let it keep fp32")
    return logps, offsets


def _is_whole(model: nn.Module) -> bool:
    """Whether the model can run outside of its wrappers: no weight is sharded away, a DTensor, or not loaded."""
    weights = list(model.parameters())
    return all(not hasattr(p, "device_mesh") and p.numel() > 0 and not p.is_meta for p in weights)


def _logps_forward(model: nn.Module, labels: Tensor, arguments: dict[str, Any]) -> tuple[Tensor, Tensor]:
    check_wrapped(model)
    head = find_head(model)
    arguments.pop("return_dict", None)
    arguments["use_cache"] = False
    output = head.body(**arguments)
    hidden = output.last_hidden_state if hasattr(output, "last_hidden_state") else output[0]
    if tuple(hidden.shape[:2]) != tuple(labels.shape):
        raise ValueError(f"labels are {tuple(labels.shape)}, but the hidden states {tuple(hidden.shape)}")
    rows = select_rows(labels.to(hidden.device, non_blocking=True), shifted=False, ignore_index=IGNORE_INDEX)
    logps = head_logps(
        head.lm_head,
        hidden.reshape(-1, hidden.shape[-1]).index_select(0, rows.index),
        rows.target,
        logit_scale=head.logit_scale,
        softcap=head.softcap,
    )
    return logps, rows.offsets
