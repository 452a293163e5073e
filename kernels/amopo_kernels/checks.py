"""Checks of the head's inputs: shapes, dtypes and devices at once, values without stopping a CUDA stream."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def check_head_inputs(
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    bias: Tensor | None,
    logit_scale: float | None,
    softcap: float | None,
) -> None:
    """Raise ValueError or TypeError, naming the argument, on anything that shape, dtype or device already shows."""
    for name, tensor, dims in (("hidden", hidden, 2), ("weight", weight, 2), ("targets", targets, 1)):
        if not isinstance(tensor, Tensor):
            raise TypeError(f"linear_logprobs: {name} must be a torch.Tensor, got {type(tensor).__name__}")
        if tensor.dim() != dims:
            raise ValueError(f"linear_logprobs: {name} must have {dims} dimension(s), got shape {tuple(tensor.shape)}")
    if type(weight).__name__ == "DTensor" or hasattr(weight, "device_mesh"):
        raise TypeError(
            "linear_logprobs: weight is a DTensor; reading a sharded weight loses its gradient reduction. Call the "
            "lm_head module instead (pass the module as lm_head), so that FSDP gathers it"
        )
    if weight.numel() == 0:
        raise ValueError(
            "linear_logprobs: weight is empty. Under ZeRO-3 it is partitioned: pass the lm_head module, not its weight"
        )
    if hidden.shape[1] != weight.shape[1]:
        raise ValueError(
            f"linear_logprobs: hidden {tuple(hidden.shape)} and weight {tuple(weight.shape)} differ in hidden size; "
            "expected [N, H] and [V, H]"
        )
    if targets.shape[0] != hidden.shape[0]:
        raise ValueError(f"linear_logprobs: {hidden.shape[0]} rows of hidden but {targets.shape[0]} targets")
    if targets.dtype not in (torch.int64, torch.int32):
        raise TypeError(f"linear_logprobs: targets must be int32 or int64, got {targets.dtype}")
    if bias is not None and tuple(bias.shape) != (weight.shape[0],):
        raise ValueError(f"linear_logprobs: bias must be [V={weight.shape[0]}], got shape {tuple(bias.shape)}")
    for name, tensor in (("hidden", hidden), ("weight", weight)):
        if not tensor.is_floating_point():
            raise TypeError(
                f"linear_logprobs: {name} is {tensor.dtype}; quantised and integer tensors must be dequantised"
            )
    for name, tensor in (("weight", weight), ("targets", targets), ("bias", bias)):
        if tensor is not None and tensor.device != hidden.device:
            raise ValueError(f"linear_logprobs: hidden is on {hidden.device} and {name} on {tensor.device}; move one")
    for name, value in (("logit_scale", logit_scale), ("softcap", softcap)):
        if value is None:
            continue
        if not isinstance(value, (int, float)) or not math.isfinite(value):
            raise ValueError(f"linear_logprobs: {name} must be a finite number, got {value!r}")
    if softcap is not None and softcap <= 0:
        raise ValueError(f"linear_logprobs: softcap must be positive, got {softcap}; None switches it off")


def check_lora(
    lora: tuple[Tensor, Tensor, float] | None, hidden: Tensor, weight: Tensor
) -> tuple[Tensor | None, Tensor | None, float]:
    """(A, B, scale) of a LoRA adapter on the head, or three nothings."""
    if lora is None:
        return None, None, 0.0
    if not isinstance(lora, tuple) or len(lora) != 3:
        raise TypeError("linear_logprobs: lora must be a tuple (A [r, H], B [V, r], scale)")
    a, b, scale = lora
    if a.dim() != 2 or b.dim() != 2 or a.shape[0] != b.shape[1]:
        raise ValueError(f"linear_logprobs: lora A must be [r, H] and B [V, r], got {tuple(a.shape)}, {tuple(b.shape)}")
    if a.shape[1] != hidden.shape[1] or b.shape[0] != weight.shape[0]:
        raise ValueError(
            f"linear_logprobs: lora A {tuple(a.shape)} and B {tuple(b.shape)} do not fit hidden {tuple(hidden.shape)} "
            f"and weight {tuple(weight.shape)}"
        )
    for name, tensor in (("A", a), ("B", b)):
        if not tensor.is_floating_point() or tensor.device != hidden.device:
            raise ValueError(
                f"linear_logprobs: lora {name} is {tensor.dtype} on {tensor.device}; hidden's device is needed"
            )
    return a, b, float(scale)


def check_budget(budget: int | None) -> int | None:
    """A positive number of bytes, or None."""
    if budget is not None and (isinstance(budget, bool) or not isinstance(budget, int) or budget <= 0):
        raise ValueError(f"budget must be a positive number of bytes, got {budget!r}")
    return budget


def logits_dtype_name(logits_dtype: torch.dtype | str | None, dtype: torch.dtype) -> str:
    """How the operators spell `logits_dtype`."""
    if logits_dtype is None:
        return ""
    if logits_dtype in ("input", dtype):
        return "input"
    if logits_dtype == torch.float32:
        return "float32"
    raise ValueError(f'logits_dtype must be None, "input" or torch.float32 for {dtype} inputs, got {logits_dtype!r}')


def check_targets(targets: Tensor, vocab: int) -> None:
    """Assert that every target lies in the vocabulary; asynchronous on CUDA."""
    torch._assert_async(
        ((targets >= 0) & (targets < vocab)).all(),
        f"linear_logprobs: a target lies outside the vocabulary [0, {vocab}); mask ignored positions before the call "
        "and check that tokenizer and model belong together",
    )


def check_finite(logps: Tensor, hidden: Tensor) -> None:
    """On a CPU: raise if hidden, weight or bias hold NaN or inf. Elsewhere NaN shows in the result."""
    if logps.device.type != "cpu":
        return
    torch._assert_async(
        # through [N] vectors only: both carry NaN, and no second [N, H] tensor is made
        (torch.isfinite(hidden.detach().amax(1)) & torch.isfinite(hidden.detach().amin(1))).all(),
        "linear_logprobs: hidden holds NaN or inf; look for the first layer that produces it, lower the learning rate",
    )
    torch._assert_async(
        ~torch.isnan(logps.detach()).any(),
        "linear_logprobs: weight or bias holds NaN or inf (or the logits overflow the dtype); check the lm_head",
    )
