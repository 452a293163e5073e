"""One sequence over two ranks, and one vocabulary over two ranks; a worker of torchrun.

    torchrun --nproc-per-node 2 pieces.py OUTPUT_DIR

Every rank writes NAME-RANK.pt with what its case gave.
"""

from __future__ import annotations

import os
import sys
from dataclasses import replace
from pathlib import Path

import tiny_runs
import torch
import torch.distributed as dist
from peft import LoraConfig, get_peft_model
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import Replicate, Shard, distribute_tensor
from torch.nn.parallel import DistributedDataParallel

import amopo
from amopo import fused_loss, loss_from_logps, pack
from amopo.integrations.hf import PreferenceCollator
from amopo.packing.shard import shard
from amopo.trainer import patch_forward

SETTINGS = {
    "gaussian": {"weights": "gaussian"},
    "sum": {"weights": "mean", "pooled": "sum"},
    "simpo": {"objective": "simpo", "weights": "uniform", "gamma": 0.3},
}
LOSS = {"beta": 2.0, "seed": 3, "step": 5}
# Of five samples: an objective prefers the chosen response, the rejected one, or neither.
SIGNS = ((1, -1, 0), None, (-1, -1, 1), (0, 0, -1), (-1, 1, 1))
ORIENTED = ("chosen first", "with signs")


def samples(signs=False):
    made = tiny_runs.samples(5, num_objectives=3)
    return [replace(sample, signs=given) for sample, given in zip(made, SIGNS, strict=True)] if signs else made


def long_prompts(count, num_objectives):
    """Samples of which the first half of every sequence holds nothing but the prompt."""
    made = tiny_runs.samples(count, num_objectives=num_objectives, longest=4)
    return [replace(sample, prompts=[[*range(3, 17)]] * num_objectives) for sample in made]


def batch(multiple=2, *, signs=False):
    return pack(samples(signs), sharing="tree", pad_to_multiple_of=multiple)


def log_probs(layout):
    return -torch.rand(len(layout.row_index), generator=torch.Generator().manual_seed(0)) * 3


def of_sequences(rank: int, size: int) -> dict:
    """The loss from log-probs of which each rank has those of its piece of the row."""
    whole, group = batch(), dist.group.WORLD
    part = shard(whole, rank, size)
    width = whole.input_ids.shape[1] // size
    mine = (whole.layout.row_index >= rank * width) & (whole.layout.row_index < (rank + 1) * width)
    results = {}
    for name, settings in SETTINGS.items():
        for oriented in ORIENTED:
            with_signs = oriented == "with signs"
            whole, part = batch(signs=with_signs), shard(batch(signs=with_signs), rank, size)
            logps = log_probs(whole.layout)[mine].requires_grad_()
            result = loss_from_logps(
                logps, part.layout, sample_ids=whole.sample_ids, sequence_parallel=group, **LOSS, **settings
            )
            result.loss.backward()
            results[name, oriented] = {
                "loss": result.loss.detach(), "alphas": result.weights, "metrics": result.metrics,
                "lengths": result.lengths, "gradient": logps.grad, "mine": mine,
            }  # fmt: skip
    # A source of weights that every rank draws for itself.
    torch.manual_seed(rank)
    drawn = loss_from_logps(
        log_probs(whole.layout)[mine], part.layout, sample_ids=whole.sample_ids, sequence_parallel=group, **LOSS,
        weights=lambda stats: torch.rand_like(stats.mean),
    )  # fmt: skip
    return results | {"drawn": drawn.weights}


PADDED = {"with signs": samples(signs=True), "no response on the first rank": long_prompts(2, 3)}


def padded(made) -> dict:
    """What a padded batch has of them: hidden states, the head, labels shifted already."""
    given = PreferenceCollator(pad_token_id=0, packed=False, pad_to_multiple_of=2)(made)
    shifted = torch.full_like(given["labels"], -100)
    shifted[:, :-1] = given["labels"][:, 1:]
    torch.manual_seed(0)
    head = nn.Linear(32, tiny_runs.VOCAB, bias=False)
    options = {"num_objectives": 3, "order": "sample_major", "sample_ids": given["amopo_sample_ids"]}
    if "amopo_signs" in given:
        options["signs"] = given["amopo_signs"]
    hidden = torch.randn(*shifted.shape, 32).requires_grad_()
    return {"hidden": hidden, "head": head, "labels": given["labels"], "shifted": shifted, "options": options}


def of_padded_rows(whole: dict, rank: int, size: int) -> dict:
    """Padded rows of which each rank has some columns: the fused loss, and that of log-probs from elsewhere."""
    width = whole["shifted"].shape[1] // size
    columns = slice(rank * width, (rank + 1) * width)
    hidden, head, labels = whole["hidden"][:, columns], whole["head"], whole["shifted"][:, columns]
    options = whole["options"] | LOSS | {"sequence_parallel": dist.group.WORLD}
    result = fused_loss(hidden, head, shift_labels=labels, **options)
    result.loss.backward()
    logps = head(hidden.detach()).log_softmax(-1).gather(2, labels.clamp(min=0)[..., None])[..., 0]
    elsewhere = loss_from_logps(logps, shift_labels=labels, **options)
    none_left = labels.clone()
    none_left[9] = -100
    refusals = [
        message_of(lambda: fused_loss(hidden, head, shift_labels=none_left, **options)),
        message_of(lambda: loss_from_logps(logps, shift_labels=none_left, **options)),
    ]
    return {
        "loss": result.loss.detach(), "alphas": result.weights, "metrics": result.metrics, "refusals": refusals,
        "hidden": whole["hidden"].grad, "head": head.weight.grad, "rows": int((labels != -100).sum()),
        "elsewhere": elsewhere.loss.detach(),
    }  # fmt: skip


def of_vocabulary(rank: int, size: int) -> dict:
    """A model whose lm_head is cut into rows, by hand and as a DTensor; and placements that cannot be right."""
    results = {}
    mesh = init_device_mesh("cpu", (size,), mesh_dim_names=("tp",))
    for kind in ("by hand", "dtensor"):
        model = tiny_runs.qwen2(tie_word_embeddings=False)
        weight = model.lm_head.weight.detach()
        if kind == "by hand":
            model.lm_head.weight = nn.Parameter(weight.chunk(size)[rank].clone())
        else:
            model.lm_head.weight = nn.Parameter(distribute_tensor(weight, mesh, [Shard(0)]))
        patch_forward(model, tensor_parallel=mesh.get_group(), allow_unwrapped=True)
        part = batch()
        logps = model(input_ids=part.input_ids, position_ids=part.position_ids, amopo_layout=part.layout)
        result = loss_from_logps(logps, part.layout, sample_ids=part.sample_ids, **LOSS)
        result.loss.backward()
        results[kind] = {
            "loss": result.loss.detach(),
            "gradients": {
                name: p.grad.full_tensor() if hasattr(p.grad, "full_tensor") else p.grad
                for name, p in model.named_parameters()
            },
        }
    results["refusals"] = {
        name: refusal(weight, mesh, placement, named)
        for name, placement, named in (
            ("no group", Shard(0), False),
            ("columns", Shard(1), True),
            ("replicas", Replicate(), True),
        )
    }
    uneven = nn.Linear(32, 63, bias=False)
    uneven.weight = nn.Parameter(distribute_tensor(uneven.weight.detach(), mesh, [Shard(0)]))
    results["refusals"]["uneven"] = message_of(lambda: loss_through(uneven, mesh.get_group()))
    # 63 rows cut by hand into modules of 32 and 31: neither says how large the whole is.
    by_hand = nn.Linear(32, (32, 31)[rank], bias=False)
    results["refusals"]["uneven by hand"] = message_of(lambda: loss_through(by_hand, mesh.get_group()))
    bare = by_hand.weight.detach()
    results["refusals"]["uneven bare"] = message_of(lambda: loss_through(bare, mesh.get_group()))
    adapted = get_peft_model(tiny_runs.qwen2(), LoraConfig(r=2, target_modules=["lm_head"])).lm_head
    adapted.base_layer.weight = nn.Parameter(distribute_tensor(adapted.base_layer.weight.detach(), mesh, [Shard(0)]))
    results["refusals"]["adapter"] = message_of(lambda: loss_through(adapted, mesh.get_group()))
    return results


def refusal(weight, mesh, placement, named) -> str:
    head = nn.Linear(*weight.shape[::-1], bias=False)
    head.weight = nn.Parameter(distribute_tensor(weight, mesh, [placement]))
    return message_of(lambda: loss_through(head, mesh.get_group() if named else None))


def loss_through(head, group):
    part = batch()
    hidden = torch.randn(part.input_ids.shape[1], 32)
    return fused_loss(hidden, head, layout=part.layout, tensor_parallel=group, **LOSS)


def message_of(call) -> str:
    try:
        call()
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return "no error"


def of_model_in_transformers_hands(rank: int, size: int, folder: Path) -> dict:
    """transformers' own tensor parallelism, head included."""
    from transformers import AutoModelForCausalLM
    from transformers.distributed import DistributedConfig

    model = AutoModelForCausalLM.from_pretrained(folder, distributed_config=DistributedConfig(tp_size=size))
    patch_forward(model)
    part = batch()
    logps = model(input_ids=part.input_ids, position_ids=part.position_ids, amopo_layout=part.layout)
    result = loss_from_logps(logps, part.layout, sample_ids=part.sample_ids, **LOSS)
    result.loss.backward()
    gradients = {
        name: p.grad.full_tensor() if hasattr(p.grad, "full_tensor") else p.grad for name, p in model.named_parameters()
    }
    return {"loss": result.loss.detach(), "gradients": gradients, "head": type(model.lm_head.weight.data).__name__}


def unwrapped() -> list[str]:
    """A packed row, and labels, in a model that no wrapper holds."""
    model = tiny_runs.qwen2()
    amopo.patch(model)
    part = batch()
    packed = {"input_ids": part.input_ids, "position_ids": part.position_ids, "amopo_layout": part.layout}
    labelled = {"input_ids": part.input_ids, "labels": part.input_ids}
    with torch.no_grad():
        model(**packed)  # evaluation needs no wrapper
        model(**labelled)
    return [message_of(lambda: model(**packed)), message_of(lambda: model(**labelled))]


def parts_alone(trained: str) -> list[str]:
    """`fully_shard` on the layers, and the root forgotten. They stay gathered after the evaluation."""
    part = batch()
    packed = {"input_ids": part.input_ids, "position_ids": part.position_ids, "amopo_layout": part.layout}
    labelled = {"input_ids": part.input_ids, "labels": part.input_ids}
    model = tiny_runs.qwen2(tie_word_embeddings=True).requires_grad_(trained == "all")
    amopo.patch(model)
    for layer in model.model.layers:
        fully_shard(layer.requires_grad_(), reshard_after_forward=False)
    messages = [message_of(lambda: model(**labelled))]
    with torch.no_grad():
        model(**packed)
    return [*messages, message_of(lambda: model(**packed))]


def beside_ddp(rank: int | None) -> dict:
    """`fused_loss` with the head that DDP holds, on hidden states out of DDP, and on those of the module in it.

    Rank None: all samples in one process.
    """
    made, mine = samples(), {None: slice(5), 0: slice(3), 1: slice(3, 5)}[rank]
    given = PreferenceCollator(pad_token_id=0, packed=False)(made[mine])
    inputs = {name: given[name] for name in ("input_ids", "attention_mask")}
    gradients = {}
    for kind in ("out of the wrapper", "past the wrapper"):
        model = tiny_runs.qwen2()
        called = model if rank is None else DistributedDataParallel(model)
        called = model if kind == "past the wrapper" else called
        hidden = called(**inputs, output_hidden_states=True).hidden_states[-1]
        options = {"num_objectives": 3, "order": "sample_major", "sample_ids": given["amopo_sample_ids"]}
        normalizer = len(made) / (1 if rank is None else 2)
        fused_loss(hidden, model.lm_head, given["labels"], normalizer=normalizer, **options, **LOSS).loss.backward()
        gradients[kind] = {name: p.grad for name, p in model.named_parameters()}
    return gradients


if __name__ == "__main__":
    directory = Path(sys.argv[1])
    dist.init_process_group("gloo")
    rank, size = dist.get_rank(), dist.get_world_size()
    torch.save(of_sequences(rank, size), directory / f"sequences-{rank}.pt")
    padded_rows = {name: of_padded_rows(padded(made), rank, size) for name, made in PADDED.items()}
    torch.save(padded_rows, directory / f"padded-{rank}.pt")
    torch.save(of_vocabulary(rank, size), directory / f"vocabulary-{rank}.pt")
    found = {
        "messages": unwrapped(),
        "beside": beside_ddp(rank),
        "parts": {kind: parts_alone(kind) for kind in ("all", "layers")},
    }
    torch.save(found, directory / f"unwrapped-{rank}.pt")
    torch.save(of_model_in_transformers_hands(rank, size, directory / "model"), directory / f"transformers-{rank}.pt")
    dist.barrier()
    sys.stdout.flush()
    os._exit(0)
