"""Whether something will bring the ranks' gradients together.

Contract
--------
`check_wrapped(model)` is called in the forward of a causal LM. In a group of several ranks, with gradients enabled, it
raises unless that forward runs inside DistributedDataParallel, or the model's parameters are sharded (FSDP, tensor
parallelism), or DeepSpeed runs in this process, which reduces gradients in its engine's own backward. Calling the
module that a wrapper holds (`ddp.module(...)`, `accelerator.unwrap_model(model)(...)`) trains every rank alone, and
nothing else would say so: the loss falls, and the ranks' weights drift apart. So do weights that train outside of
FSDP2's units, where `fully_shard` was applied to parts of the model and not to the model. So do the processes that
torchrun started where no group was made: they cannot see each other, but torchrun says that there are several.

It looks at objects in memory only; no communication.
"""

from __future__ import annotations

import os
import sys

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

# How many processes torchrun started, which accelerate launch and amopo's --nproc start too.
_STARTED = int(os.environ.get("WORLD_SIZE", "1")) if "TORCHELASTIC_RUN_ID" in os.environ else 1


def check_wrapped(model: nn.Module) -> None:
    """Raise RuntimeError where the gradients of this forward would stay on their rank."""
    if not (torch.is_grad_enabled() and dist.is_available()):
        return
    if not dist.is_initialized():
        if _STARTED > 1:
            _refuse_no_group(model)
        return
    if dist.get_world_size() == 1:
        return
    if DistributedDataParallel._get_active_ddp_module() is not None:
        return
    if _deepspeed_runs():
        return
    if any(map(_in_fsdp, model.modules())):
        _check_units(model)
        return
    if is_sharded(model):  # by tensor parallelism, which keeps weights that are not in pieces alike
        return
    if not _trains(model):
        return
    raise RuntimeError(
        f"{type(model).__name__} runs on {dist.get_world_size()} ranks outside of any wrapper, so that nothing would "
        "reduce its gradients and every rank would train alone: call the wrapper itself (DistributedDataParallel, what "
        "accelerator.prepare returned), not what it wraps (.module, unwrap_model). Where you reduce gradients "
        "yourself, say so with patch_forward(model, allow_unwrapped=True)"
    )


def _trains(model: nn.Module) -> bool:
    return any(parameter.requires_grad for parameter in model.parameters())


def _refuse_no_group(model: nn.Module) -> None:
    if not _trains(model):
        return
    raise RuntimeError(
        f"torchrun started {_STARTED} processes, but this one is in no process group, so that each would train "
        f"{type(model).__name__} alone, on the same batches: call torch.distributed.init_process_group() and wrap the "
        "model (DistributedDataParallel), or start one process. Where they are meant to train apart, say so with "
        "patch_forward(model, allow_unwrapped=True)"
    )


def is_sharded(model: nn.Module) -> bool:
    """Whether FSDP or tensor parallelism keeps the model's weights in pieces."""
    # Both FSDPs mark every module that they manage; a DTensor belongs to FSDP2 or to tensor parallelism.
    if _in_fsdp(model):
        return True
    return any(hasattr(parameter, "placements") for parameter in model.parameters())


def _check_units(model: nn.Module) -> None:
    """Raise RuntimeError for what trains outside of FSDP's units.

    Asked is the module, not its parameters: a unit that is gathered has plain ones.
    """
    alone: dict[int, str] = {}  # tied weights have two names
    for prefix, module in model.named_modules():
        if not _in_fsdp(module):
            for name, parameter in module.named_parameters(recurse=False):
                if parameter.requires_grad and not hasattr(parameter, "placements"):
                    alone.setdefault(id(parameter), f"{prefix}.{name}")
    if alone:
        first, more = next(iter(alone.values())), f" and {len(alone) - 1} more" if len(alone) > 1 else ""
        raise RuntimeError(
            f"fully_shard was applied to parts of {type(model).__name__} alone: nothing would reduce the gradients of "
            f"{first}{more}, and every rank would train its own. Call fully_shard(model) too, after its parts. "
            "Where you reduce these gradients yourself, say so with patch_forward(model, allow_unwrapped=True)"
        )


def _in_fsdp(module: nn.Module) -> bool:
    """Whether an FSDP unit is this module or holds it."""
    return bool(getattr(module, "_is_fsdp_managed_module", False))


def _deepspeed_runs() -> bool:
    comm = sys.modules.get("deepspeed.comm.comm")
    return getattr(comm, "cdb", None) is not None
