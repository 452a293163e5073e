"""DDP and FSDP2 for `rank_memory`: torch alone, on a CPU."""

from __future__ import annotations

import contextlib
import weakref
from collections.abc import Iterator
from typing import Any
from unittest import mock

import torch
import torch.distributed as dist
from rank_memory_cases import Case
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import CPUOffloadPolicy
from torch.nn.parallel import DistributedDataParallel

from amopo.memory.meters import TensorMeter
from amopo.memory.simulated_engines import shard


class DeviceMeter(TensorMeter):
    """Counts what would stand on the GPU."""

    def __init__(self, device: torch.device) -> None:
        super().__init__(device)
        self._host: set[int] = set()
        self._is_on_host = False

    @contextlib.contextmanager
    def on_host(self) -> Iterator[None]:
        """What is made meanwhile stands on the host."""
        self._is_on_host = True
        try:
            yield
        finally:
            self._is_on_host = False

    def hold(self, storage: torch.UntypedStorage) -> None:
        key = storage._cdata
        if self._is_on_host and key not in self._sizes and key not in self._host:
            self._host.add(key)
            weakref.finalize(storage, self._host.discard, key).atexit = False
        if key not in self._host:
            super().hold(storage)


def copies(meter: DeviceMeter) -> contextlib.AbstractContextManager:
    """Let FSDP2 copy between GPU and host, where on a CPU it would take the tensors themselves."""
    before = torch.Tensor.to

    def to(tensor: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        if "non_blocking" not in kwargs:
            return before(tensor, *args, **kwargs)
        # `all_gather_inputs` always copies so, `foreach_reduce` only to pinned memory
        with contextlib.nullcontext() if kwargs["non_blocking"] else meter.on_host():
            return before(tensor, *args, **kwargs, copy=True)

    return mock.patch.object(torch.Tensor, "to", to)


class Engine:
    first = 2  # the optimizer makes its state in the first step
    steps = 5

    is_told_apart = True

    def __init__(self, model: nn.Module, case: Case, offload: str) -> None:
        self.model, self.case, self.offload = model, case, offload

    def start(self) -> None:
        self.called = self.wrap()
        trained = [p for p in self.model.parameters() if p.requires_grad]
        self.optimizer = torch.optim.AdamW(trained, lr=1e-6, fused=True)

    @contextlib.contextmanager
    def told_apart(self, memory: Any) -> Iterator[None]:
        if self.offload == "none":
            with memory:
                yield
            return
        meter = memory.meter = DeviceMeter(memory.device)
        with meter.on_host():
            memory.__enter__()
        try:
            with copies(meter):
                self.meter = meter
                yield
        finally:
            memory.__exit__(None, None, None)

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
        with self.meter.on_host() if self.offload != "none" else contextlib.nullcontext():
            self.optimizer.step()
        self.optimizer.zero_grad()

    def kinds(self) -> dict[str, list[Tensor]]:
        """What is held between the last backward and the step, by kind."""
        parameters = list(self.model.parameters())
        return {
            "parameters": [local(p) for p in parameters],
            "gradients": [local(p.grad) for p in parameters if p.grad is not None],
            "optimizer": [local(v) for s in self.optimizer.state.values() for v in s.values() if isinstance(v, Tensor)],
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
        # pinned memory needs a driver
        policy = None if self.offload == "none" else CPUOffloadPolicy(pin_memory=False)
        mesh = init_device_mesh("cpu", (dist.get_world_size(),))
        shard(self.model, mesh, "mixed", offload=policy)
        return self.model


ENGINES = {"ddp": DDP, "fsdp2": FSDP2}
