"""Three optimizer steps in a loop of one's own, under any engine; run on one process or as a worker of torchrun.

    torchrun --nproc-per-node 2 steps.py OUTPUT_DIR CASE...         CASE: engine,tied|untied,ACCUMULATION[,VARIANT]

VARIANT: `lora-body`, `lora-head` (body and head), `whole-head` (LoRA on the body, the head trains in full) of PEFT;
`padded`: padded rows with labels and signs through `amopo.patch`. In one process every variant runs on packed rows.

Every rank writes CASE-RANK.pt: per step the loss, the weights alpha by sample, the gradients of all that trains and
all weights, in full.
"""

from __future__ import annotations

import contextlib
import os
import sys
from dataclasses import dataclass, replace
from pathlib import Path

import tiny_runs
import torch
import torch.distributed as dist
from sharding import check_sharded, let_fsdp_run_on_cpus
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel

import amopo
from amopo import loss_from_logps, pack
from amopo.integrations.hf import PreferenceCollator
from amopo.preference_loss import FusedLoss
from amopo.trainer import patch_forward

STEPS = 3
LEARNING_RATE, MOMENTUM = 0.3, 0.9
# Samples of each micro-batch, by [step][rank][micro-batch]: no two ranks and no two micro-batches alike.
SIZES = {
    1: [[[3], [1]], [[1], [2]], [[2], [4]]],
    2: [[[2, 1], [1, 3]], [[1, 1], [2, 1]], [[3, 1], [1, 2]]],
}


BODY = ["q_proj", "v_proj", "down_proj"]
ADAPTERS = {
    "lora-body": {"target_modules": BODY},
    "lora-head": {"target_modules": [*BODY, "lm_head"]},
    "whole-head": {"target_modules": BODY, "modules_to_save": ["lm_head"]},
}
SIGNS = ((1, -1), (-1, 1), (0, 1), (1, 1))


@dataclass(frozen=True)
class Case:
    engine: str
    tied: bool
    accumulation: int
    variant: str = "plain"

    @classmethod
    def parse(cls, text: str) -> Case:
        engine, tied, accumulation, *variant = text.split(",")
        return cls(engine, {"tied": True, "untied": False}[tied], int(accumulation), *variant)

    def __str__(self) -> str:
        variant = "" if self.variant == "plain" else f",{self.variant}"
        return f"{self.engine},{'tied' if self.tied else 'untied'},{self.accumulation}{variant}"


def make_model(case: Case) -> torch.nn.Module:
    torch.manual_seed(0)
    model = tiny_runs.qwen2(tie_word_embeddings=case.tied)
    if case.variant not in ADAPTERS:
        return model
    from peft import LoraConfig, get_peft_model

    # B is zero at first otherwise, and A without a gradient.
    return get_peft_model(model, LoraConfig(r=4, init_lora_weights=False, **ADAPTERS[case.variant]))


def make_samples(case: Case) -> list:
    made = tiny_runs.samples(40)
    if case.variant != "padded":
        return made
    return [replace(sample, signs=SIGNS[number % len(SIGNS)]) for number, sample in enumerate(made)]


def batches(case: Case, rank: int | None) -> list[list[list]]:
    """Samples by [step][micro-batch]; rank None: those of all ranks, in one micro-batch."""
    samples = iter(make_samples(case))
    steps = []
    for ranks in SIZES[case.accumulation]:
        dealt = [[[next(samples) for _ in range(count)] for count in counts] for counts in ranks]
        steps.append([[s for micro in dealt for part in micro for s in part]] if rank is None else dealt[rank])
    return steps


class Engine:
    """One process, no wrapper; other engines change what differs."""

    def __init__(self, model: torch.nn.Module, accumulation: int) -> None:
        self.model = self.called = model
        self.prepare(accumulation)

    def prepare(self, accumulation: int) -> None:
        self.optimizer = self.make_optimizer()

    def make_optimizer(self) -> torch.optim.Optimizer:
        trained = [p for p in self.model.parameters() if p.requires_grad]
        return torch.optim.SGD(trained, lr=LEARNING_RATE, momentum=MOMENTUM)

    @property
    def causal_lm(self) -> torch.nn.Module:
        """The model without PEFT."""
        return self.model.get_base_model() if hasattr(self.model, "get_base_model") else self.model

    def accumulate(self, is_last: bool) -> contextlib.AbstractContextManager:
        return contextlib.nullcontext()

    def backward(self, loss: torch.Tensor, is_last: bool) -> None:
        loss.backward()

    def gradients(self) -> dict[str, torch.Tensor]:
        return {name: self.whole(p.grad) for name, p in self.model.named_parameters() if p.requires_grad}

    def step(self) -> None:
        self.optimizer.step()
        self.optimizer.zero_grad()

    def weights(self) -> dict[str, torch.Tensor]:
        return {name: self.whole(p) for name, p in self.model.named_parameters()}

    def check(self) -> None:
        """That this is the engine which runs."""
        assert self.called is self.model

    @staticmethod
    def whole(tensor: torch.Tensor) -> torch.Tensor:
        tensor = tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor
        return tensor.detach().clone()


class DDP(Engine):
    def prepare(self, accumulation: int) -> None:
        self.optimizer = self.make_optimizer()
        self.called = DistributedDataParallel(self.model)

    def check(self) -> None:
        assert isinstance(self.called, DistributedDataParallel)

    def accumulate(self, is_last: bool) -> contextlib.AbstractContextManager:
        return contextlib.nullcontext() if is_last else self.called.no_sync()


class FSDP2(Engine):
    """Layers are units of their own; `self.shard_head` decides where the head goes."""

    def shard_head(self) -> None:
        """The head stays in the root unit."""

    def prepare(self, accumulation: int) -> None:
        for layer in self.causal_lm.model.layers:
            fully_shard(layer)
        self.shard_head()
        fully_shard(self.model)
        self.optimizer = self.make_optimizer()

    def check(self) -> None:
        check_sharded(self.model)

    def accumulate(self, is_last: bool) -> contextlib.AbstractContextManager:
        self.model.set_requires_gradient_sync(is_last)
        return contextlib.nullcontext()


class FSDP2Tail(FSDP2):
    """As accelerate cuts it: final norm and head (tied: and embedding) in one unit."""

    def shard_head(self) -> None:
        body, head = self.causal_lm.model, self.causal_lm.lm_head
        tied = body.embed_tokens.weight is head.weight
        fully_shard([body.norm, *([body.embed_tokens] if tied else []), head], reshard_after_forward=False)


class FSDP2Own(FSDP2):
    def shard_head(self) -> None:
        fully_shard(self.causal_lm.lm_head)


class Accelerate(Engine):
    """`accelerator.prepare` and `accelerator.backward`; what it prepares for comes from the environment."""

    def prepare(self, accumulation: int) -> None:
        from accelerate import Accelerator
        from accelerate.state import AcceleratorState, GradientState

        AcceleratorState._reset_state(reset_partial_state=True)
        GradientState._reset_state()
        self.accelerator = Accelerator(**{"cpu": True, **self.plugins()})
        self.called, self.optimizer = self.accelerator.prepare(self.model, self.make_optimizer())
        self.model = self.accelerator.unwrap_model(self.called)

    def check(self) -> None:
        assert isinstance(self.called, DistributedDataParallel)

    def plugins(self) -> dict:
        return {}

    def accumulate(self, is_last: bool) -> contextlib.AbstractContextManager:
        return contextlib.nullcontext() if is_last else self.accelerator.no_sync(self.called)

    def backward(self, loss: torch.Tensor, is_last: bool) -> None:
        self.accelerator.backward(loss)


class AccelerateFSDP2(Accelerate):
    def plugins(self) -> dict:
        from accelerate import FullyShardedDataParallelPlugin

        os.environ["ACCELERATE_USE_FSDP"] = "true"
        let_fsdp_run_on_cpus()
        return {
            "fsdp_plugin": FullyShardedDataParallelPlugin(fsdp_version=2, auto_wrap_policy="transformer_based_wrap")
        }

    def prepare(self, accumulation: int) -> None:
        super().prepare(accumulation)
        os.environ.pop("ACCELERATE_USE_FSDP")

    def check(self) -> None:
        check_sharded(self.model)


ENGINES = {
    "single": Engine,
    "ddp": DDP,
    "fsdp2": FSDP2,
    "fsdp2-tail": FSDP2Tail,
    "fsdp2-own": FSDP2Own,
    "accelerate-ddp": Accelerate,
    "accelerate-fsdp2": AccelerateFSDP2,
}


def loss_of(called: torch.nn.Module, samples: list, *, padded: bool, **options) -> FusedLoss:
    """The loss of one micro-batch, packed, or padded with labels."""
    if not padded:
        batch = pack(samples)
        logps = called(input_ids=batch.input_ids, position_ids=batch.position_ids, amopo_layout=batch.layout)
        return loss_from_logps(logps, batch.layout, sample_ids=batch.sample_ids, **options)
    batch = PreferenceCollator(pad_token_id=0, packed=False)(samples)
    logps = called(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"], labels=batch["labels"])
    return loss_from_logps(
        logps,
        labels=batch["labels"],
        num_objectives=2,
        order="sample_major",
        signs=batch.get("amopo_signs"),
        sample_ids=batch["amopo_sample_ids"],
        **options,
    )


def train(case: Case, rank: int | None, world_size: int) -> list[dict]:
    """What each step gave; `rank=None` runs all samples in one process."""
    model = make_model(case)
    padded = case.variant == "padded" and rank is not None
    (amopo.patch if padded else patch_forward)(model)
    engine = ENGINES[case.engine](model, case.accumulation)
    engine.check()
    steps = []
    for number, micro_batches in enumerate(batches(case, rank)):
        count = torch.tensor(float(sum(map(len, micro_batches))))
        if rank is not None:
            dist.all_reduce(count)
        total, alphas = torch.zeros(()), {}
        for place, samples in enumerate(micro_batches):
            is_last = place == len(micro_batches) - 1
            with engine.accumulate(is_last):
                result = loss_of(
                    engine.called,
                    samples,
                    padded=padded,
                    beta=2.0,
                    normalizer=count / world_size,
                    seed=3,
                    step=number,
                )
                engine.backward(result.loss, is_last)
            total += result.loss.detach() / world_size
            alphas |= dict(zip((s.id for s in samples), result.weights.clone()))
        if rank is not None:
            dist.all_reduce(total)
        gradients = engine.gradients()
        engine.step()
        steps.append({"loss": total, "alphas": alphas, "gradients": gradients, "weights": engine.weights()})
    return steps


if __name__ == "__main__":
    directory = Path(sys.argv[1])
    cases = [Case.parse(text) for text in sys.argv[2:]]
    if any("zero" in case.engine for case in cases):
        import deepspeed_engines

        ENGINES.update(deepspeed_engines.ENGINES)
        deepspeed_engines.start()
    else:
        dist.init_process_group("gloo")
    rank, world_size = dist.get_rank(), dist.get_world_size()
    for case in cases:
        torch.save(train(case, rank, world_size), directory / f"{case}-{rank}.pt")
    dist.barrier()
    # gloo's threads may abort a process that tears them down while another rank still talks to it
    sys.stdout.flush()
    os._exit(0)
