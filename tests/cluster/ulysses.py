"""One optimizer step on sequences that two ranks share, with DeepSpeed's Ulysses; a worker of torchrun.

torchrun --nproc-per-node 2 ulysses.py OUTPUT_DIR STAGE...      (STAGE: of ZeRO)
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

import deepspeed
import deepspeed_engines
import tiny_runs
import torch
import torch.distributed as dist
from deepspeed.runtime.sequence_parallel.ulysses_sp import UlyssesSPAttentionHF
from deepspeed.utils import safe_get_full_fp32_param, safe_get_full_grad

from amopo import loss_from_logps, pack
from amopo.packing.shard import shard
from amopo.trainer import patch_forward

LEARNING_RATE = 0.3
LOSS = {"beta": 2.0, "seed": 3, "step": 5}


def samples():
    return tiny_runs.samples(5, num_objectives=3, longest=12)


def model():
    return tiny_runs.qwen2(tie_word_embeddings=False)


def step(stage: int, rank: int, size: int) -> dict:
    network = model()
    patch_forward(network)  # first: Ulysses wraps the attention that the model has when it is registered
    attention = network.config._attn_implementation
    mpu = UlyssesSPAttentionHF.register_with_transformers(
        model_name_or_path=network,
        core_attn_implementation=attention,
        sequence_parallel_size=size,
        micro_batch_size=1,
        seq_length_is_variable=True,
    )
    engine, *_ = deepspeed.initialize(
        model=network,
        optimizer=torch.optim.SGD(network.parameters(), lr=LEARNING_RATE),
        config=deepspeed_engines.config(stage) | {"sequence_parallel_size": size},
        mpu=mpu,
    )
    batch = shard(pack(samples(), pad_to_multiple_of=size), rank, size)
    logps = engine(input_ids=batch.input_ids, position_ids=batch.position_ids, amopo_layout=batch.layout)
    # What DeepSpeed divides the ranks' gradients by: ZeRO-3 reduces and scatters over all ranks.
    averaged = dist.get_world_size() if stage == 3 else dist.get_world_size() // size
    result = loss_from_logps(
        logps,
        batch.layout,
        normalizer=batch.num_samples / averaged,
        sample_ids=batch.sample_ids,
        sequence_parallel=mpu.get_sequence_parallel_group(),
        **LOSS,
    )
    engine.backward(result.loss)
    gradients = {name: safe_get_full_grad(p).clone() for name, p in network.named_parameters()}
    engine.step()
    weights = {name: safe_get_full_fp32_param(p).clone() for name, p in network.named_parameters()}
    loss = result.loss_sum.detach() / batch.num_samples
    return {"loss": loss, "alphas": result.weights, "gradients": gradients, "weights": weights}


if __name__ == "__main__":
    directory = Path(sys.argv[1])
    deepspeed_engines.start()
    for stage in map(int, sys.argv[2:]):
        torch.save(step(stage, dist.get_rank(), dist.get_world_size()), directory / f"{stage}-{dist.get_rank()}.pt")
    dist.barrier()
    sys.stdout.flush()
    os._exit(0)
