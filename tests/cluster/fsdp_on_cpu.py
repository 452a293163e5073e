"""accelerate runs FSDP on accelerators only; on CPU ranks it would take DDP instead, without a word.

`allow()` makes it run FSDP2 on CPU ranks, where torch itself does: where FSDP is asked for, ranks on CPUs are counted
as ranks on devices, which is what decides. Everything else (device, gloo, sharding) stays as it is.
"""

from __future__ import annotations

import functools
import os

from accelerate.state import AcceleratorState, PartialState
from accelerate.utils import DistributedType


def allow() -> None:
    """From here on, in this process."""
    before = AcceleratorState.__init__
    if hasattr(before, "__wrapped__"):
        return

    @functools.wraps(before)
    def init(self, mixed_precision=None, cpu=False, *args, **kwargs):
        if os.environ.get("ACCELERATE_USE_FSDP", "false").lower() == "true":
            ranks = PartialState(cpu)
            if ranks.distributed_type == DistributedType.MULTI_CPU:
                ranks.distributed_type = DistributedType.MULTI_GPU
        before(self, mixed_precision, cpu, *args, **kwargs)

    AcceleratorState.__init__ = init
