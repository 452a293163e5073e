"""What is refused on several ranks; called by trainer_runs.py. Each function here must raise."""

from __future__ import annotations

from pathlib import Path

import tiny_runs
import torch
import trainer_runs

from amopo import fused_loss, pack


def fsdp1(directory: Path) -> None:
    trainer_runs.make(directory / "fsdp1", "fsdp1")


def fsdp_on_cpus(directory: Path) -> None:
    """What a user on CPUs has; the other tests make accelerate shard there."""
    trainer_runs.make(directory / "cpus", "single", **trainer_runs.fsdp())


def mixin_fsdp_on_cpus(directory: Path) -> None:
    trainer_runs.make_mixed(directory / "cpus", "single", **trainer_runs.fsdp())


def mixin_fsdp1(directory: Path) -> None:
    trainer_runs.make_mixed(directory / "fsdp1", "fsdp1")


def more_ranks(directory: Path) -> None:
    """`directory` holds a checkpoint of one process."""
    trainer_runs.make(directory / "more", "ddp").train(resume_from_checkpoint=str(directory / "of-one-process"))


def evaluation_first(directory: Path, engine: str) -> None:
    trainer_runs.make(directory / "first", engine).evaluate()


def unsaid_clipping(directory: Path) -> None:
    """DeepSpeed's configuration says nothing of clipping, and max_grad_norm is not what it would take."""
    settings = trainer_runs.zero(2)
    del settings["deepspeed"]["gradient_clipping"]
    trainer_runs.make(directory / "clipping", "single", **settings)


def partitioned_head() -> torch.nn.Module:
    """A head that ZeRO-3 cut into pieces while it was made, and that no engine has taken yet."""
    import deepspeed

    config = {"train_micro_batch_size_per_gpu": 1, "zero_optimization": {"stage": 3}}
    with deepspeed.zero.Init(config_dict_or_path=config):
        return torch.nn.Linear(32, tiny_runs.VOCAB, bias=False)


def loss_through(head: torch.nn.Module | torch.Tensor) -> None:
    batch = pack(tiny_runs.samples(2))
    fused_loss(torch.randn(batch.input_ids.shape[1], 32), head, layout=batch.layout)


def head_outside_of_the_engine(directory: Path) -> None:
    loss_through(partitioned_head())


def weight_by_hand(directory: Path) -> None:
    loss_through(partitioned_head().weight)


REFUSALS = {
    "fsdp1": fsdp1,
    "fsdp-on-cpus": fsdp_on_cpus,
    "mixin-fsdp1": mixin_fsdp1,
    "mixin-fsdp-on-cpus": mixin_fsdp_on_cpus,
    "more-ranks": more_ranks,
    "evaluation-first-fsdp2": lambda directory: evaluation_first(directory, "fsdp2"),
    "evaluation-first-zero3": lambda directory: evaluation_first(directory, "zero3"),
    "unsaid-clipping": unsaid_clipping,
    "head-outside": head_outside_of_the_engine,
    "weight-by-hand": weight_by_hand,
}


def message_of(name: str, directory: Path) -> str:
    try:
        REFUSALS[name](directory)
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return "no error"
