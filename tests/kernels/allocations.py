"""Watches every tensor that is created while it is active: the largest one, and the peak of all that live at once."""

from __future__ import annotations

import weakref

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from amopo_kernels.head_op import linear_logprobs_backward_op, linear_logprobs_op
from amopo_kernels.mobt_op import _mobt_op
from amopo_kernels.segments import _sequence_stats_op, expand_segments

_OPERATORS = (linear_logprobs_op, linear_logprobs_backward_op, _mobt_op, _sequence_stats_op, expand_segments)
_IMPLEMENTATIONS = {op._opoverload: op._init_fn for op in _OPERATORS}


def implementation_of(func):
    """The Python function of one of our operators, to look inside where a watch would see one opaque call; or None."""
    return _IMPLEMENTATIONS.get(func)


class AllocationWatch(TorchDispatchMode):
    """Counts storage bytes of results of every dispatched operation, from creation to release.

    `known` tensors (inputs, parameters) are not counted. What an operation takes and frees inside itself does not show.
    """

    def __init__(self, *known: torch.Tensor) -> None:
        super().__init__()
        self._seen = weakref.WeakSet()
        for tensor in known:
            self._seen.add(tensor.untyped_storage())
        self.live = self.peak = self.largest = 0
        self.largest_from = ""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        implementation = implementation_of(func)
        if implementation is None:
            result = func(*args, **(kwargs or {}))
        else:  # our own operators would hide their allocations
            with self:
                return implementation(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            if isinstance(tensor, torch.Tensor):
                self._count(tensor, str(func))
        return result

    def _count(self, tensor: torch.Tensor, name: str) -> None:
        storage = tensor.untyped_storage()
        if storage in self._seen:
            return
        self._seen.add(storage)
        size = storage.nbytes()
        self.live += size
        self.peak = max(self.peak, self.live)
        if size > self.largest:
            self.largest, self.largest_from = size, f"{name} {tuple(tensor.shape)} {tensor.dtype}"
        weakref.finalize(storage, self._release, size)

    def _release(self, size: int) -> None:
        self.live -= size
