"""The lm_head of any causal LM: finding it, and calling it for log-probs instead of logits.

`find_head(model)` gives the body (which ends in the final norm), the head module, and what the model does to logits
afterwards. `head_logps(lm_head, rows, targets)` calls the head **module** with a replaced forward that takes
(rows, targets) and returns one tensor of log-probs: hooks of DDP, ZeRO-3 and FSDP2 then gather the weight and reduce
its gradient as they do for a plain call. Reading `lm_head.weight` from outside fails or is silently wrong in several of
them, so what cannot be right raises.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from amopo.head_adapters import definer_of_forward, head_path
from amopo.head_weight import check_present, local_weight
from amopo_kernels.linear_logprobs import linear_logprobs


class Head(NamedTuple):
    """Parts of a causal LM: `softcap(logit_scale * lm_head(body(...).last_hidden_state))`."""

    body: nn.Module
    lm_head: nn.Module
    logit_scale: float | None
    softcap: float | None


# attribute of the config -> (model types that use it so, how the scale follows from it)
_SCALES = {
    "logit_scale": (("cohere", "cohere2"), lambda value: value),
    "logits_scaling": (("granite", "granitemoe", "granitemoeshared", "granitemoehybrid"), lambda value: 1.0 / value),
    "lm_head_multiplier": (("falcon_h1",), lambda value: value),
}
_UNKNOWN_SCALES = ("output_multiplier", "logits_soft_cap", "output_multiplier_scale")


def unwrap(model: nn.Module) -> nn.Module:
    """The causal LM inside DDP-like wrappers (`.module`) and PEFT."""
    while isinstance(getattr(model, "module", None), nn.Module) and not hasattr(model, "get_output_embeddings"):
        model = model.module
    if hasattr(model, "peft_config") and hasattr(model, "get_base_model"):
        model = model.get_base_model()
    return model


def find_head(model: nn.Module) -> Head:
    """Body, head and logit transform of a Hugging Face causal LM, wrapped or not.

    Raises:
        ValueError: no output embeddings, or a transform of the logits that is not reproduced here, by name.
    """
    model = unwrap(model)
    get_head = getattr(model, "get_output_embeddings", None)
    lm_head = get_head() if get_head is not None else None
    name = type(model).__name__
    if lm_head is None:
        raise ValueError(f"{name} has no output embeddings (lm_head); AMoPO needs a causal language model")
    body = getattr(model, "base_model", None)
    if body is None or body is model:
        raise ValueError(f"{name} has no body beneath its head (base_model); AMoPO needs a causal language model")
    config = model.config.get_text_config() if hasattr(model.config, "get_text_config") else model.config
    if getattr(config, "output_router_logits", False):
        raise ValueError(
            f"{name} adds a router loss (config.output_router_logits=True), which this path does not compute; "
            "set config.output_router_logits=False"
        )
    scale = None
    for attribute, (types, rule) in _SCALES.items():
        value = getattr(config, attribute, None)
        if value is None or value == 1.0:
            continue
        if config.model_type not in types:
            raise ValueError(f"{name}: config.{attribute}={value} is not known for model type {config.model_type!r}")
        scale = float(rule(value))
    for attribute in _UNKNOWN_SCALES:
        if getattr(config, attribute, None) not in (None, 1.0):
            raise ValueError(f"{name}: config.{attribute} changes the logits in a way that is not supported")
    softcap = getattr(config, "final_logit_softcapping", None)
    return Head(body, lm_head, scale, None if softcap is None else float(softcap))


def vocab_size(lm_head: nn.Module | Tensor) -> int | None:
    """V, as far as it shows without gathering a sharded weight."""
    if isinstance(lm_head, Tensor):
        return lm_head.shape[0] if lm_head.numel() else None
    size = getattr(head_path(lm_head).base, "out_features", None)
    return size if isinstance(size, int) else None


def head_logps(
    lm_head: nn.Module | Tensor,
    rows: Tensor,
    targets: Tensor,
    *,
    logit_scale: float | None = None,
    softcap: float | None = None,
    logits_dtype: torch.dtype | str | None = None,
    tensor_parallel: Any = None,
    budget: int | None = None,
) -> Tensor:
    """Log-probs fp32 `[R]` of `targets [R]` at hidden `rows [R, H]`, through the head module (or a weight `[V, H]`).

    R = 0 still calls the module: collectives inside its hooks must run on every rank. With
    `tensor_parallel`, a process group, each rank's head holds its rows of the vocabulary, and the module's hooks, which
    would gather its output, are passed by.

    Raises:
        ValueError, TypeError: adapters on the head, a sharded or quantised weight, a module that is no linear layer,
        or hooks that changed the dtype of the result.
    """
    options = {"logit_scale": logit_scale, "softcap": softcap, "logits_dtype": logits_dtype, "budget": budget}
    if isinstance(lm_head, Tensor):
        check_present(lm_head)
        return linear_logprobs(rows, lm_head, targets, process_group=tensor_parallel, **options)
    if not isinstance(lm_head, nn.Module):
        raise TypeError(f"lm_head must be a module or a weight tensor [V, H], got {type(lm_head).__name__}")
    path = head_path(lm_head)

    def logps_forward(rows: Tensor, targets: Tensor) -> Tensor:
        # In here, where the module's own call has gathered its weight: under ZeRO-3 a look at it from the causal LM's
        # forward makes it a parameter of the whole model, gathered from the beginning of a step to its end.
        _check_module(path.base)
        weight, bias, group = local_weight(path.base, tensor_parallel)
        if path.lora is not None:
            if group is not None:
                raise ValueError(
                    "an adapter on an lm_head whose vocabulary is sharded is not supported; leave lm_head out of "
                    "target_modules"
                )
            bias = path.bias()
        return linear_logprobs(rows, weight, targets, bias=bias, lora=path.low_rank(), process_group=group, **options)

    # The hooks of a tensor-parallel head would gather its output.
    logps = _call_through(() if tensor_parallel is not None else path.modules, logps_forward, rows, targets)
    expected = torch.float64 if rows.dtype == torch.float64 else torch.float32
    if not isinstance(logps, Tensor) or logps.dtype != expected:
        got = logps.dtype if isinstance(logps, Tensor) else type(logps).__name__
        raise TypeError(
            f"log-probs came back from the lm_head as {got}, not {expected}: a hook or wrapper casts its outputs "
            "(FSDP2: MixedPrecisionPolicy(output_dtype=None) for the head)"
        )
    return logps


def _call_through(
    modules: tuple[nn.Module, ...], function: Callable[[Tensor, Tensor], Tensor], rows: Tensor, targets: Tensor
) -> Tensor:
    """`function(rows, targets)` inside calls of all `modules`, each in the one before it, so that all hooks run."""
    if not modules or (torch.compiler.is_compiling() and not any(map(_has_hooks, modules))):
        return function(rows, targets)  # Dynamo cannot follow a forward that is replaced for one call
    module = modules[0]

    def forward(rows: Tensor, targets: Tensor, **unknown: object) -> Tensor:
        if unknown:  # PEFT's hooks pass adapter_names=, for a mixed batch
            raise ValueError(f"lm_head got {', '.join(unknown)}, which the fused head does not support; leave it out")
        return _call_through(modules[1:], function, rows, targets)

    had_own = "forward" in module.__dict__
    before = module.__dict__.get("forward")
    module.forward = forward
    try:
        return module(rows, targets)
    finally:
        if had_own:
            module.forward = before
        else:
            del module.forward


def _has_hooks(module: nn.Module) -> bool:
    return bool(
        module._forward_pre_hooks or module._forward_hooks or module._backward_pre_hooks or module._backward_hooks
    )


def _check_module(module: nn.Module) -> None:
    weight = getattr(module, "weight", None)
    if not isinstance(weight, Tensor):
        raise TypeError(f"lm_head is a {type(module).__name__} without a weight tensor; a linear layer is needed")
    # By class, not by instance: accelerate and others set a forward on the instance, which calls the class's.
    definer = definer_of_forward(module)
    if definer not in (nn.Linear, nn.Embedding):
        raise TypeError(
            f"lm_head is a {type(module).__name__} with a forward of its own ({definer.__name__}.forward), which the "
            "fused loss would skip; a plain nn.Linear is needed"
        )
    if not weight.is_floating_point():
        raise TypeError(f"lm_head.weight is {weight.dtype}: quantised heads are not supported; keep the head in bf16")
