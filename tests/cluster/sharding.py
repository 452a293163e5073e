"""FSDP on CPUs through accelerate, for the workers of this folder."""

from __future__ import annotations

import functools
import os

from accelerate import PartialState
from accelerate.state import AcceleratorState
from accelerate.utils import DistributedType
from torch import nn
from torch.distributed.tensor import DTensor


def let_fsdp_run_on_cpus() -> None:
    """accelerate shards on accelerators alone and takes DDP on CPUs, saying nothing; the rest of it does not mind.

    Between the making of TrainingArguments, which sets this state, and of the Accelerator, which reads it.
    """
    PartialState(cpu=True)
    PartialState._shared_state["distributed_type"] = DistributedType.MULTI_GPU


def let_fsdp_run_on_cpus_when_asked_for() -> None:
    """The same, ahead of all of it: for commands, which make their settings and their Accelerator themselves."""
    before = AcceleratorState.__init__

    @functools.wraps(before)
    def init(self, mixed_precision=None, cpu=False, *args, **kwargs):
        if os.environ.get("ACCELERATE_USE_FSDP", "false").lower() == "true":
            ranks = PartialState(cpu)
            if ranks.distributed_type == DistributedType.MULTI_CPU:
                ranks.distributed_type = DistributedType.MULTI_GPU
        before(self, mixed_precision, cpu, *args, **kwargs)

    AcceleratorState.__init__ = init


def check_sharded(model: nn.Module) -> None:
    """That FSDP2 keeps the weights in pieces now."""
    assert all(isinstance(parameter, DTensor) for parameter in model.parameters()), "weights must be sharded"
