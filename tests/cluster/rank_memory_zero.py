"""ZeRO-3 for `rank_memory`: DeepSpeed on a CPU."""

from __future__ import annotations

import contextlib
from typing import Any

import deepspeed
import torch
from rank_memory_cases import Case, deepspeed_config
from torch import Tensor, nn


def start() -> None:
    deepspeed.init_distributed(dist_backend="gloo", verbose=False)


class Zero3:
    first = 3  # DeepSpeed records the order of the modules in the second step, and fetches ahead in the third
    steps = 6

    is_told_apart = False  # copies to the host and back are none on a CPU

    def __init__(self, model: nn.Module, case: Case, offload: str) -> None:
        self.model, self.config = model, deepspeed_config(case, offload)

    def start(self) -> None:
        trained = [p for p in self.model.parameters() if p.requires_grad]
        self.called, *_ = deepspeed.initialize(
            model=self.model, optimizer=torch.optim.AdamW(trained, lr=1e-6, fused=True), config=self.config
        )

    def told_apart(self, memory: Any) -> contextlib.AbstractContextManager:
        return memory

    @property
    def watched(self) -> tuple[nn.Module, Any]:
        return self.called.module, self.called.optimizer

    def micro_batch(self, *, is_last: bool) -> contextlib.AbstractContextManager:
        self.is_last = is_last
        return contextlib.nullcontext()

    def backward(self, loss: Tensor) -> None:
        self.called.backward(loss)
        if not self.is_last:
            self.called.step()  # counts micro-batches, and steps at the last

    def step(self) -> None:
        self.called.step()

    def kinds(self) -> dict[str, list[Tensor]]:
        """What DeepSpeed holds between steps, by kind."""
        zero, parameters = self.called.optimizer, list(self.called.module.parameters())
        masters = zero.fp32_partitioned_groups_flat
        return {
            "parameters": [p.ds_tensor for p in parameters],
            "gathered": [p.data for p in parameters],  # small ones are never given up
            "gradients": [zero.grad_partitions_flat_buffer],
            "optimizer": [
                *masters,
                *(v for s in zero.optimizer.state.values() for v in s.values() if isinstance(v, Tensor)),
            ],
            "fp32 gradients": [p.grad for p in masters if p.grad is not None],
            "bucket": [bucket.buffer for bucket in zero.ipg_buckets.values()],
        }

    def facts(self) -> dict[str, int]:
        # what DeepSpeed takes for parameters of a module from its `_parameters`, seen from the module around it
        return {"external": len(self.called.module._external_params)}

    def end(self) -> None:
        self.called.destroy()
