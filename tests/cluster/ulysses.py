"""One optimizer step on sequences that two ranks share, with DeepSpeed's Ulysses; a worker of torchrun.

    torchrun --nproc-per-node 2 ulysses.py OUTPUT_DIR CASE...       CASE: KIND,STAGE (of ZeRO)

KIND: `packed` rows, whose samples have signs; `padded` rows with shifted labels and signs, through `amopo.patch`;
`prompt`: a packed row of which the first rank's half is the prompt alone. Every rank writes CASE-RANK.pt.
"""

from __future__ import annotations

import contextlib
import os
import sys
from dataclasses import replace
from pathlib import Path

import deepspeed
import deepspeed_engines
import pieces
import tiny_runs
import torch
import torch.distributed as dist
from deepspeed.runtime.sequence_parallel import parallel_state_sp
from deepspeed.runtime.sequence_parallel.ulysses_sp import UlyssesSPAttentionHF
from deepspeed.utils import safe_get_full_fp32_param, safe_get_full_grad
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

import amopo
from amopo import loss_from_logps, pack
from amopo.integrations.hf import PreferenceCollator
from amopo.packing.shard import shard
from amopo.preference_loss import FusedLoss

LEARNING_RATE = 0.3
LOSS = {"beta": 2.0, "seed": 3, "step": 5}
KINDS = ("packed", "padded", "prompt")


def samples(kind: str) -> list:
    if kind == "prompt":
        return pieces.long_prompts(1, 1)
    made = tiny_runs.samples(5, num_objectives=3, longest=12)
    return [replace(sample, signs=signs) for sample, signs in zip(made, pieces.SIGNS, strict=True)]


def model():
    return tiny_runs.qwen2(tie_word_embeddings=False)


def rows(kind: str) -> int:
    """Rows of a batch: Ulysses wants to know."""
    return sum(2 * sample.num_objectives for sample in samples(kind)) if kind == "padded" else 1


@contextlib.contextmanager
def registered(network, kind: str, size: int):
    """DeepSpeed registers once per process; what that leaves behind is taken back at the end."""
    name = network.config._attn_implementation
    before = ALL_ATTENTION_FUNCTIONS[name]
    yield UlyssesSPAttentionHF.register_with_transformers(
        model_name_or_path=network,
        core_attn_implementation=name,
        sequence_parallel_size=size,
        micro_batch_size=rows(kind),
        seq_length_is_variable=True,
    )
    ALL_ATTENTION_FUNCTIONS[name] = before
    parallel_state_sp._SEQUENCE_PARALLEL_GROUP = parallel_state_sp._SEQUENCE_DATA_PARALLEL_GROUP = None


def loss_of(engine, kind: str, rank: int, size: int, group, averaged: int) -> FusedLoss:
    """The loss of this rank's piece."""
    count = len(samples(kind))
    options = {"normalizer": count / averaged, "sequence_parallel": group, **LOSS}
    if kind != "padded":
        batch = shard(pack(samples(kind), pad_to_multiple_of=size), rank, size)
        assert (len(batch.layout.row_index) == 0) == (kind == "prompt" and rank == 0)
        logps = engine(input_ids=batch.input_ids, position_ids=batch.position_ids, amopo_layout=batch.layout)
        return loss_from_logps(logps, batch.layout, sample_ids=batch.sample_ids, **options)
    batch = PreferenceCollator(pad_token_id=0, packed=False, pad_to_multiple_of=size)(samples(kind))
    labels = torch.full_like(batch["labels"], -100)
    labels[:, :-1] = batch["labels"][:, 1:]
    width = labels.shape[1] // size
    piece = slice(rank * width, (rank + 1) * width)
    places = torch.arange(labels.shape[1]).expand_as(labels)
    logps = engine(input_ids=batch["input_ids"][:, piece], position_ids=places[:, piece], shift_labels=labels[:, piece])
    return loss_from_logps(
        logps,
        shift_labels=labels[:, piece],
        num_objectives=3,
        order="sample_major",
        signs=batch["amopo_signs"],
        sample_ids=batch["amopo_sample_ids"],
        **options,
    )


def step(kind: str, stage: int, rank: int, size: int) -> dict:
    network = model()
    amopo.patch(network)  # first: Ulysses wraps the attention that the model has when it is registered
    with registered(network, kind, size) as mpu:
        return take_step(network, mpu, kind, stage, rank, size)


def take_step(network, mpu, kind: str, stage: int, rank: int, size: int) -> dict:
    engine, *_ = deepspeed.initialize(
        model=network,
        optimizer=torch.optim.SGD(network.parameters(), lr=LEARNING_RATE),
        config=deepspeed_engines.config(stage) | {"sequence_parallel_size": size},
        mpu=mpu,
    )
    # What DeepSpeed divides the ranks' gradients by: ZeRO-3 reduces and scatters over all ranks.
    averaged = dist.get_world_size() if stage == 3 else dist.get_world_size() // size
    result = loss_of(engine, kind, rank, size, mpu.get_sequence_parallel_group(), averaged)
    engine.backward(result.loss)
    gradients = {name: safe_get_full_grad(p).clone() for name, p in network.named_parameters()}
    engine.step()
    weights = {name: safe_get_full_fp32_param(p).clone() for name, p in network.named_parameters()}
    loss = result.loss_sum.detach() / len(samples(kind))
    return {"loss": loss, "alphas": result.weights, "gradients": gradients, "weights": weights}


if __name__ == "__main__":
    directory = Path(sys.argv[1])
    deepspeed_engines.start()
    for case in sys.argv[2:]:
        kind, stage = case.split(",")
        made = step(kind, int(stage), dist.get_rank(), dist.get_world_size())
        torch.save(made, directory / f"{case}-{dist.get_rank()}.pt")
    dist.barrier()
    sys.stdout.flush()
    os._exit(0)
