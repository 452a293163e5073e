"""A rank on the CPU: bytes of tensors by phase and by kind, as JSON.

`torchrun ... rank_memory.py FOLDER RUN...`; a run is one of `rank_memory_cases`.

On a CPU what is offloaded lands in the same memory. The tensors that would stand on the host are told apart by where
the engine keeps them: peaks and what is live are without them.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import settled
import torch
import torch.distributed as dist
from rank_memory_cases import Case, parse
from torch import Tensor

from amopo.fused_loss import loss_from_logps
from amopo.memory import track
from amopo.memory.configs import samples_of
from amopo.memory.profile import build
from amopo.packing import pack
from amopo.trainer.forward import patch_forward

# Kinds that offloading puts on the host.
HOST = {"none": (), "optimizer": ("gradients", "optimizer", "fp32 gradients")}
HOST["all"] = (*HOST["optimizer"], "parameters")


def storage_bytes(tensors: Iterable[Tensor]) -> int:
    found = {t.untyped_storage()._cdata: t.untyped_storage().nbytes() for t in tensors}
    return sum(found.values())


def engine_of(case: Case) -> type:
    if case.engine == "zero3":
        from rank_memory_zero import Zero3

        return Zero3
    from rank_memory_torch import ENGINES

    return ENGINES[case.engine]


def run(name: str) -> dict[str, Any]:
    case, offload = parse(name)
    settings = case.settings(offload)
    model = build(case.shape, settings, torch.device("cpu"))
    patch_forward(model)
    batch = pack(samples_of(case.sample), sharing=case.sample.sharing)
    engine = engine_of(case)(model, case, offload)
    with track(model) as loading:
        settled.count_by(lambda: loading.meter.live())
        engine.start()
        loaded = loading.meter.live()
    memory = track(*engine.watched)
    settled.count_by(lambda: memory.meter.live())
    with engine.told_apart(memory):
        for step in range(engine.steps):
            for micro in range(case.accumulation):
                with engine.micro_batch(is_last=micro == case.accumulation - 1):
                    with torch.autocast("cpu", torch.bfloat16, enabled=case.engine == "ddp"):
                        logps = engine.called(
                            input_ids=batch.input_ids, position_ids=batch.position_ids, amopo_layout=batch.layout
                        )
                    loss = loss_from_logps(logps, batch.layout, sample_ids=batch.sample_ids, step=step).loss
                    engine.backward(loss)
                    del logps, loss
            held = engine.kinds()  # before the step is over: gradients that it drops are there
            found = {kind: storage_bytes(tensors) for kind, tensors in held.items()}
            found["host"] = storage_bytes(t for kind in HOST[offload] for t in held[kind])
            found["all"] = storage_bytes(t for tensors in held.values() for t in tensors)
            live = memory.meter.live()
            del held
            engine.step()
    # Equal from the engine's `first` on, but for what gloo's threads hold before `settled` looks, which only adds.
    peaks = {phase: min(step[phase] for step in memory.steps[engine.first - 1 :]) for phase in memory.steps[-1]}
    if not engine.is_told_apart:
        peaks = {phase: peak - found["host"] for phase, peak in peaks.items()}
        live -= found["host"]
    # Each rank builds the whole model here: where more of that goes than the engine makes, what is left is the load.
    # What ZeRO-3 makes with adapters, and gives up again, is then not to be seen.
    if case.engine == "fsdp2" or (case.engine == "ddp" and case.lora is not None):
        peaks["load"] = loaded
    elif case.lora is None:
        peaks["load"] = loading.meter.peak()
    result = {"peaks": peaks, "states": found, "live": live, **engine.facts()}
    engine.end()
    return result


def main() -> None:
    folder, runs = Path(sys.argv[1]), sys.argv[2:]
    settled.install()
    if any(parse(name)[0].engine == "zero3" for name in runs):
        import rank_memory_zero

        rank_memory_zero.start()
    else:
        dist.init_process_group("gloo")
    rank = dist.get_rank()
    for name in runs:
        (folder / f"{name.replace(':', '-')}-{rank}.json").write_text(json.dumps(run(name)))
    dist.barrier()
    # Threads of gloo that outlive the group may abort the process while the interpreter ends.
    os._exit(0)


if __name__ == "__main__":
    main()
