"""The lm_head's weight as it stands while its module runs: whole, or this rank's rows of the vocabulary.

`local_weight(module, group)` is called inside the head's forward, where DDP, ZeRO-3 and FSDP2 have put the whole weight
together: it is returned as it is. What is still in pieces there is right in one case only, the vocabulary-parallel
form: rows `[V / P, H]` in rank order over a group, all of one size, as tensor parallelism leaves them. Which group that
is must be said (`group`), or be known from transformers' own tensor parallelism: the shards of FSDP look the same, but
each of its ranks has other hidden states. Everything else raises and says what to do.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

_CALL_THE_WHOLE = (
    "call the model through the object that shards it (the engine of deepspeed.initialize, the module that "
    "fully_shard was applied to), so that its hooks put the weight together"
)


class LocalWeight(NamedTuple):
    """weight `[V, H]` or `[V / P, H]`, bias of as many rows or None, and the group over which the rows are sharded."""

    weight: Tensor
    bias: Tensor | None
    group: Any


def local_weight(module: nn.Module, group: Any = None) -> LocalWeight:
    """The weight and bias that this rank multiplies with.

    Args:
        module: the lm_head, inside its forward. group: a process group of tensor parallelism, or None.
    Raises:
        ValueError: a weight that is not here (meta device, ZeRO-3 partition), or sharded in another way.
    """
    weight, bias = module.weight, getattr(module, "bias", None)
    if weight.device.type == "meta":
        raise ValueError("lm_head.weight is on the meta device; offloaded heads are not supported, keep it loaded")
    check_present(weight)
    if _is_dtensor(weight):
        group = _group_of(module, weight, group)
        weight, bias = weight.to_local(), None if bias is None else bias.to_local()
    if group is not None:
        _check_rows(module, weight, group)
    return LocalWeight(weight, bias, group)


def check_present(weight: Tensor) -> None:
    """Raise ValueError for a weight of no elements, as ZeRO-3 leaves it outside of its engine."""
    if weight.numel() == 0:
        owner = (
            "ZeRO-3 keeps it partitioned"
            if hasattr(weight, "ds_id")
            else "its owner keeps it elsewhere, as ZeRO-3 does"
        )
        raise ValueError(f"lm_head.weight has no elements here: {owner}; {_CALL_THE_WHOLE}")


def _is_dtensor(tensor: Tensor) -> bool:
    return hasattr(tensor, "device_mesh") and hasattr(tensor, "placements")


def _transformers_shards(module: nn.Module) -> bool:
    # transformers' tensor parallelism leaves this mark on the modules whose forward it has replaced.
    return bool(getattr(module, "_is_hooked", False))


def _group_of(module: nn.Module, weight: Any, group: Any) -> Any:
    mesh, placements = weight.device_mesh, tuple(weight.placements)
    found = f"lm_head.weight is a DTensor with placements {_shown(placements)} on a mesh of shape {tuple(mesh.shape)}"
    if group is None and not _transformers_shards(module):
        raise ValueError(
            f"{found}: {_CALL_THE_WHOLE}; or, where tensor parallelism shards the vocabulary, name its process group "
            "(tensor_parallel= of patch_forward and fused_loss)"
        )
    if len(placements) != 1 or not placements[0].is_shard(0):
        raise ValueError(
            f"{found}; the vocabulary-parallel form needs rows sharded over one mesh dimension, (Shard(0),): make the "
            'head column-parallel ("colwise" in transformers\' tp_plan, ColwiseParallel in parallelize_module)'
        )
    own = mesh.get_group()
    if group is not None and torch.distributed.get_process_group_ranks(group) != mesh.mesh.flatten().tolist():
        raise ValueError(
            f"{found} of ranks {mesh.mesh.flatten().tolist()}, but tensor_parallel has the ranks "
            f"{torch.distributed.get_process_group_ranks(group)}; pass the group of the weight's mesh"
        )
    return own


def _shown(placements: tuple) -> str:
    names = [f"Shard({p.dim})" if p.is_shard() else type(p).__name__ for p in placements]
    return f"({', '.join(names)}{',' if len(names) == 1 else ''})"


def _check_rows(module: nn.Module, weight: Tensor, group: Any) -> None:
    """The ranks' shards are of one size, as far as the module says how large the vocabulary is."""
    rows = getattr(module, "out_features", None)
    ranks = group.size()
    # A module that was made for its shard alone has as many output features as rows.
    if isinstance(rows, int) and rows not in (weight.shape[0], weight.shape[0] * ranks):
        raise ValueError(
            f"a vocabulary of {rows} does not divide into {ranks} shards of one size (this rank holds "
            f"{weight.shape[0]} rows); pad it with model.resize_token_embeddings(pad_to_multiple_of={ranks})"
        )
