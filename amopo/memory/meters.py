"""Who counts the bytes of tensors on a device: CUDA's allocator, or on a CPU every storage that an operation makes.

A meter has `live()`, the bytes held now, and `peak()`, the most since `restart()`. `CudaMeter` reads the caching
allocator (`memory_allocated`, `max_memory_allocated`): all tensors of the process on that device. `TensorMeter` counts
storages that `see(result)` is shown and those of `start(tensors)`, from creation to release, with the size that they
had at the last `see` or `hold(storage)`. Of a DTensor the tensor inside counts.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterable
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.utils._python_dispatch import is_traceable_wrapper_subclass
from torch.utils._pytree import tree_leaves


class Meter(Protocol):
    def start(self, tensors: Iterable[Tensor]) -> None: ...

    def see(self, result: Any) -> None: ...

    def hold(self, storage: torch.UntypedStorage) -> None: ...

    def live(self) -> int: ...

    def peak(self) -> int: ...

    def restart(self) -> None: ...


class CudaMeter:
    """Allocator statistics of one CUDA device."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._reserved = 0

    def start(self, tensors: Iterable[Tensor]) -> None:
        """The allocator knows of them."""

    def see(self, result: Any) -> None:
        """The allocator has seen it."""

    def hold(self, storage: torch.UntypedStorage) -> None:
        """The allocator has seen it."""

    def live(self) -> int:
        return torch.cuda.memory_allocated(self.device)

    def peak(self) -> int:
        self.reserved()
        return torch.cuda.max_memory_allocated(self.device)

    def restart(self) -> None:
        self.reserved()
        torch.cuda.reset_peak_memory_stats(self.device)

    def reserved(self) -> int:
        """The most bytes that the allocator held, whatever was restarted: CUDA has one reset for all of its peaks.

        Another meter that restarts must have this one's `peak()` read before, as trackers inside each other do.
        """
        self._reserved = max(self._reserved, torch.cuda.max_memory_reserved(self.device))
        return self._reserved


class TensorMeter:
    """Storages on a device without an allocator that counts. What an operation takes and frees inside itself is not
    seen, except in the operators of the head."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._sizes: dict[int, int] = {}
        self._live = self._peak = 0

    def start(self, tensors: Iterable[Tensor]) -> None:
        for tensor in tensors:
            self._count(tensor)

    def see(self, result: Any) -> None:
        for part in tree_leaves(result):
            if isinstance(part, Tensor):
                self._count(part)

    def _count(self, tensor: Tensor) -> None:
        if is_traceable_wrapper_subclass(tensor):  # a DTensor: its own storage has the size of the whole, and no memory
            for name in tensor.__tensor_flatten__()[0]:
                if isinstance(part := getattr(tensor, name), Tensor):
                    self._count(part)
            return
        self.hold(tensor.untyped_storage())

    def hold(self, storage: torch.UntypedStorage) -> None:
        """Count a storage, or the size that it has now."""
        if storage.device.type != self.device.type:
            return
        # A storage object lives as long as its memory; its address serves again only after it is gone.
        key, size = storage._cdata, storage.nbytes()
        known = self._sizes.get(key)
        if known is None:
            weakref.finalize(storage, self._release, key).atexit = False
        elif known == size:
            return
        self._sizes[key] = size
        self._live += size - (known or 0)
        self._peak = max(self._peak, self._live)

    def _release(self, key: int) -> None:
        self._live -= self._sizes.pop(key, 0)

    def live(self) -> int:
        return self._live

    def peak(self) -> int:
        return self._peak

    def restart(self) -> None:
        self._peak = self._live


def meter_of(device: torch.device) -> Meter:
    """The meter for a device."""
    return CudaMeter(device) if device.type == "cuda" else TensorMeter(device)
