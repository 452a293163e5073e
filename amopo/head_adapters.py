"""What PEFT puts on an lm_head: which modules one call passes through, and what cannot be right there.

`head_path(lm_head) -> HeadPath(modules, base, lora)`: the modules to call, outermost first, the linear layer whose
weight is used, and the active LoRA adapter, if any. Known forms:

    plain head                       the head itself
    modules_to_save=["lm_head"]      PEFT's wrapper and in it the active copy; with adapters disabled the original
    LoRA on the head                 the adapter layer, its A, its B and the head beneath, one inside the other

Refused by name: DoRA and other variants of LoRA, dropout of the adapter while training, several active adapters, a
merged adapter that should still train, weights stored transposed, adapters that are not LoRA.

`check_adapters(model)` looks at the whole model: an adapter on the input embeddings of a model whose head is tied to
them, but stays without it, is refused.

PEFT is not imported: its layers are known by the class that defines their forward, and by their fields.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

REMEDY = 'leave lm_head out of target_modules, or train it whole with modules_to_save=["lm_head"]'
_LORA_LINEAR = ("peft.tuners.lora.layer", "Linear")


class LoraParts(NamedTuple):
    """One active adapter: modules that hold A `[r, H]` and B `[V, r]`, and the scale of their product."""

    a: nn.Module
    b: nn.Module
    scale: float


class HeadPath(NamedTuple):
    """Modules to call, outermost first; the linear layer at the bottom; the adapter on it."""

    modules: tuple[nn.Module, ...]
    base: nn.Module
    lora: LoraParts | None

    def bias(self) -> Tensor | None:
        """`[V]`: the head's bias and the scaled one of B (`lora_bias=True`)."""
        bias = getattr(self.base, "bias", None)
        extra = None if self.lora is None else getattr(self.lora.b, "bias", None)
        if extra is None:
            return bias
        extra = extra * self.lora.scale
        return extra if bias is None else bias + extra

    def low_rank(self) -> tuple[Tensor, Tensor, float] | None:
        """(A, B, scale) as `linear_logprobs` takes them."""
        return None if self.lora is None else (self.lora.a.weight, self.lora.b.weight, self.lora.scale)


def definer_of_forward(module: nn.Module) -> type:
    """The class whose forward runs; FSDP2 makes subclasses at run time, which define none."""
    return next(cls for cls in type(module).__mro__ if "forward" in cls.__dict__)


def head_path(lm_head: nn.Module) -> HeadPath:
    """The way through a head, wrapped by PEFT or not.

    Raises:
        ValueError: an adapter that would be ignored, or computed differently from PEFT, by name.
    """
    module = _active_copy(lm_head)
    # FSDP2 hooks the wrapper of the copies, where it is a unit or part of one.
    outer = () if module is lm_head else (lm_head,)
    if not hasattr(module, "base_layer"):
        if hasattr(module, "lora_A"):
            _refuse(module, "an adapter layer without a base layer")
        return HeadPath((*outer, module), module, None)
    definer = definer_of_forward(module)
    if (definer.__module__, definer.__name__) != _LORA_LINEAR:
        _refuse(module, f"an adapter that is not LoRA ({definer.__module__}.{definer.__name__})")
    if getattr(module, "fan_in_fan_out", False):
        _refuse(module, "LoRA on a weight that is stored transposed (fan_in_fan_out=True)")
    base = module.base_layer
    if hasattr(base, "base_layer"):
        _refuse(module, f"LoRA on top of another adapter layer, {type(base).__name__}")
    name = _active_adapter(module)
    if name is None:
        return HeadPath((*outer, module, base), base, None)
    a, b = module.lora_A[name], module.lora_B[name]
    parts = LoraParts(a, b, float(module.scaling[name]))
    return HeadPath((*outer, module, a, b, base), base, parts)


def _active_copy(lm_head: nn.Module) -> nn.Module:
    """The copy that trains, where PEFT keeps one per adapter."""
    copies = getattr(lm_head, "modules_to_save", None)
    if not isinstance(copies, nn.ModuleDict):
        return lm_head
    if getattr(lm_head, "disable_adapters", False):
        return lm_head.original_module
    active = getattr(lm_head, "active_adapter", None)
    active = active[0] if isinstance(active, (list, tuple)) and len(active) == 1 else active
    if not isinstance(active, str) or active not in copies:
        raise ValueError(f"lm_head has {len(copies)} saved copies and active adapter {active!r}; activate one")
    return copies[active]


def _active_adapter(module: Any) -> str | None:
    """The one adapter of a LoRA layer that a call uses; None where the head alone is used."""
    if module.disable_adapters:
        return None
    names = [name for name in module.active_adapters if name in module.lora_A]
    if module.merged:
        trains = [name for name in names if module.lora_B[name].weight.requires_grad]
        if trains and torch.is_grad_enabled():
            _refuse(module, f"a merged adapter ({trains[0]!r}), which would not train", "call unmerge_adapter() first")
        return None
    if not names:
        return None
    if len(names) > 1:
        _refuse(module, f"{len(names)} active adapters ({', '.join(names)})", "activate one with set_adapter()")
    name = names[0]
    if name in module.lora_variant:
        variant = type(module.lora_variant[name]).__name__
        kind = "DoRA" if variant.startswith("Dora") else "a variant of LoRA"
        _refuse(module, f"{kind} on the head (adapter {name!r}, {variant})", f"use plain LoRA there, or {REMEDY}")
    dropout = module.lora_dropout[name]
    if module.training and getattr(dropout, "p", 0.0) > 0:
        _refuse(module, _dropout_on_the_head(name, dropout.p), f"set lora_dropout=0, or {REMEDY}")
    return name


def _dropout_on_the_head(name: str, p: float) -> str:
    return f"an adapter with dropout on the head (adapter {name!r}, lora_dropout={p:g})"


def _refuse(module: nn.Module, what: str, remedy: str = REMEDY) -> None:
    raise ValueError(f"lm_head ({type(module).__name__}): {what} is not supported by the fused head; {remedy}")


def check_adapters(model: nn.Module, *, training: bool = False) -> None:
    """Raise for adapters of a causal LM (taken out of its wrappers) that the fused head cannot honour.

    `training=True` refuses what would fail in the first training step, whatever mode the model is in now.
    """
    lm_head = model.get_output_embeddings()
    head_path(lm_head)
    if training:
        for name, dropout in getattr(lm_head, "lora_dropout", {}).items():
            if getattr(dropout, "p", 0.0) > 0 and name in lm_head.active_adapters:
                _refuse(lm_head, _dropout_on_the_head(name, dropout.p), f"set lora_dropout=0, or {REMEDY}")
    embeddings = model.get_input_embeddings()
    if not _is_adapted(embeddings) or _is_adapted(lm_head):
        return
    if _base_weight(embeddings) is _base_weight(lm_head):
        raise ValueError(
            f"the input embeddings carry an adapter ({type(embeddings).__name__}) and the lm_head is tied to them, but "
            "the adapter does not reach it: the two would drift apart, and merging would change the head. Leave the "
            "embeddings out of target_modules, modules_to_save and trainable_token_indices, or set "
            "ensure_weight_tying=True"
        )


def _is_adapted(module: nn.Module | None) -> bool:
    return hasattr(module, "base_layer") or hasattr(module, "original_module")


def _base_weight(module: nn.Module) -> Tensor | None:
    while True:
        inner = getattr(module, "base_layer", None) or getattr(module, "original_module", None)
        if not isinstance(inner, nn.Module):
            return getattr(module, "weight", None)
        module = inner
