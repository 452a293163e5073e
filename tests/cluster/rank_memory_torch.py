"""DDP and FSDP2 for `rank_memory`: torch alone, on a CPU."""

from __future__ import annotations

import contextlib
from typing import Any

import torch
from rank_memory_cases import Case
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.nn.parallel import DistributedDataParallel

from amopo.memory.simulated_engines import shard


class Engine:
    first = 2  # the optimizer makes its state in the first step

    def __init__(self, model: nn.Module, case: Case, offload: str) -> None:
        self.model, self.case, self.offload = model, case, offload
        self.called = self.wrap()
        trained = [p for p in model.parameters() if p.requires_grad]
        self.optimizer = torch.optim.AdamW(trained, lr=1e-6, fused=True)

    def wrap(self) -> nn.Module:
        raise NotImplementedError

    @property
    def watched(self) -> tuple[nn.Module, Any]:
        return self.model, self.optimizer

    def micro_batch(self, *, is_last: bool) -> contextlib.AbstractContextManager:
        return contextlib.nullcontext()

    def backward(self, loss: Tensor) -> None:
        loss.backward()

    def step(self) -> None:
        self.optimizer.step()
        self.optimizer.zero_grad()

    def kinds(self) -> dict[str, list[Tensor]]:
        """What is held between the last backward and the step, by kind."""
        parameters = list(self.model.parameters())
        return {
            "parameters": [local(p) for p in parameters],
            "gradients": [local(p.grad) for p in parameters if p.grad is not None],
            "optimizer": [
                local(v) for s in self.optimizer.state.values() for v in s.values() if isinstance(v, Tensor)
            ],
            "fp32 gradients": [],
        }

    def facts(self) -> dict[str, int]:
        return {}

    def end(self) -> None:
        pass


def local(tensor: Tensor) -> Tensor:
    return tensor.to_local() if hasattr(tensor, "to_local") else tensor


class DDP(Engine):
    def wrap(self) -> nn.Module:
        return DistributedDataParallel(self.model)

    def micro_batch(self, *, is_last: bool) -> contextlib.AbstractContextManager:
        return contextlib.nullcontext() if is_last else self.called.no_sync()


class FSDP2(Engine):
    """The units of the simulation, which are those of accelerate but for the final norm."""

    def wrap(self) -> nn.Module:
        shard(self.model, init_device_mesh("cpu", (torch.distributed.get_world_size(),)), "mixed")
        return self.model


ENGINES = {"ddp": DDP, "fsdp2": FSDP2}
