"""A watch for operations that make the host wait for values on a device."""

from __future__ import annotations

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from tests.kernels.allocations import implementation_of

FORBIDDEN = ("_local_scalar_dense", "nonzero", "masked_select", "unique", "_unique", "item")


class SyncWatch(TorchDispatchMode):
    """Raises on an operation that waits; looks inside this project's operators. `seen` counts the names."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: dict[str, int] = {}

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.overloadpacket.__name__
        self.seen[name] = self.seen.get(name, 0) + 1
        boolean = name in ("index", "index_put", "index_put_") and any(
            t is not None and t.dtype in (torch.bool, torch.uint8) for t in args[1]
        )
        unsized = name == "repeat_interleave" and (kwargs or {}).get("output_size") is None
        if name.startswith(FORBIDDEN) or boolean or unsized:
            raise AssertionError(f"{func} makes the host wait")
        implementation = implementation_of(func)
        if implementation is None:
            return func(*args, **(kwargs or {}))
        with self:
            return implementation(*args, **(kwargs or {}))
