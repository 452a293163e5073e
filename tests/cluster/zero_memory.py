"""A rank under DeepSpeed's ZeRO-3 on the CPU: bytes of tensors by phase and by kind, as JSON.

`torchrun ... zero_memory.py FOLDER CASE...`; a case is `name:offload`, with a name of `zero_memory_cases`.

On a CPU what is offloaded lands in the same memory. The tensors that would stand on the host are told apart by where
DeepSpeed keeps them, and their bytes are taken off what the tracker measures.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import deepspeed
import torch
import torch.distributed as dist
from torch import Tensor
from zero_memory_cases import CASES, deepspeed_config, settings_of

from amopo.fused_loss import loss_from_logps
from amopo.memory import track
from amopo.memory.configs import samples_of
from amopo.memory.profile import build
from amopo.packing import pack
from amopo.trainer.forward import patch_forward

FIRST = 3  # DeepSpeed records the order of the modules in the second step, and fetches ahead in the third
STEPS = 6  # equal from the third on, but for copies that gloo's threads give up late: they only add


def storage_bytes(tensors: Iterable[Tensor]) -> int:
    found = {t.untyped_storage()._cdata: t.untyped_storage().nbytes() for t in tensors}
    return sum(found.values())


def kinds(engine: Any) -> dict[str, list[Tensor]]:
    """What DeepSpeed holds between steps, by kind."""
    zero = engine.optimizer
    masters = zero.fp32_partitioned_groups_flat
    return {
        "partitions": [p.ds_tensor for p in engine.module.parameters()],
        "gathered": [p.data for p in engine.module.parameters()],  # small ones are never given up
        "gradients": [zero.grad_partitions_flat_buffer],
        "optimizer": [
            *masters,
            *(v for s in zero.optimizer.state.values() for v in s.values() if isinstance(v, Tensor)),
        ],
        "fp32 gradients": [p.grad for p in masters if p.grad is not None],
        "bucket": [bucket.buffer for bucket in zero.ipg_buckets.values()],
    }


def run(name: str, offload: str) -> dict[str, Any]:
    shape, sample, checkpointing, limits = CASES[name]
    settings = settings_of(offload, checkpointing)
    model = build(shape, settings, torch.device("cpu"))
    patch_forward(model)
    batch = pack(samples_of(sample), sharing=sample.sharing)
    with track(model) as loading:
        engine, *_ = deepspeed.initialize(
            model=model, optimizer=torch.optim.AdamW(model.parameters(), lr=1e-6, fused=True),
            config=deepspeed_config(shape, offload, limits),
        )  # fmt: skip
    with track(engine.module, engine.optimizer) as memory:
        for step in range(STEPS):
            logps = engine(input_ids=batch.input_ids, position_ids=batch.position_ids, amopo_layout=batch.layout)
            loss = loss_from_logps(logps, batch.layout, sample_ids=batch.sample_ids, step=step).loss
            engine.backward(loss)
            del logps, loss
            engine.step()
        held = kinds(engine)
        live = memory.meter.live()
    host = {"none": (), "optimizer": ("gradients", "optimizer", "fp32 gradients")}
    host["all"] = (*host["optimizer"], "partitions")
    found = {kind: storage_bytes(tensors) for kind, tensors in held.items()}
    found["host"] = storage_bytes(t for kind in host[offload] for t in held[kind])
    found["all"] = storage_bytes(t for tensors in held.values() for t in tensors)
    peaks = {phase: min(step[phase] for step in memory.steps[FIRST - 1 :]) for phase in memory.steps[-1]}
    # what DeepSpeed takes for parameters of a module from its `_parameters`, seen from the module around it
    external = len(engine.module._external_params)
    engine.destroy()
    return {"peaks": {"load": loading.meter.peak(), **peaks}, "states": found, "live": live, "external": external}


def main() -> None:
    folder = Path(sys.argv[1])
    deepspeed.init_distributed(dist_backend="gloo", verbose=False)
    rank = dist.get_rank()
    for case in sys.argv[2:]:
        name, offload = case.split(":")
        (folder / f"{name}-{offload}-{rank}.json").write_text(json.dumps(run(name, offload)))
    dist.barrier()
    # Threads of gloo that outlive the group may abort the process while the interpreter ends.
    os._exit(0)


if __name__ == "__main__":
    main()
