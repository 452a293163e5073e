"""Runs of AMoPOTrainer under one engine; a worker of torchrun, or called in one process.

    torchrun --nproc-per-node 2 trainer_runs.py OUTPUT_DIR TASK...      TASK: KIND:ENGINE

KIND: `train` two epochs in unequal batches with fillers, saving after the second of four steps; `resume` goes on from
there in another process. Every task writes KIND-ENGINE.json (logs, rank 0) and KIND-ENGINE.pt (weights, in full).
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import fsdp_on_cpu
import tiny_runs
import torch
import torch.distributed as dist
from torch.distributed.tensor import DTensor

from amopo.packing import packed_length
from amopo.trainer import AMoPOTrainer

SAMPLES, STEPS, SAVED = 5, 4, 2
ZERO = {
    "train_micro_batch_size_per_gpu": "auto",
    "gradient_accumulation_steps": "auto",
    "gradient_clipping": "auto",
    "zero_allow_untested_optimizer": True,
    "zero_force_ds_cpu_optimizer": False,
}


def zero(stage: int, **options) -> dict:
    settings = {"stage": stage, **options}
    if stage == 3:
        settings |= {"stage3_param_persistence_threshold": 0, "stage3_gather_16bit_weights_on_model_save": True}
    return {"deepspeed": {**ZERO, "zero_optimization": settings}}


def fsdp(**options) -> dict:
    return {"fsdp": True, "fsdp_config": {"version": 2, **options}}


def settings_of(engine: str) -> dict:
    offload = {"offload_optimizer": {"device": "cpu"}, "offload_param": {"device": "cpu"}}
    return {
        "single": {},
        "ddp": {},
        "fsdp2": fsdp(),
        "fsdp2-sharded": fsdp(state_dict_type="SHARDED_STATE_DICT"),
        "zero1": zero(1),
        "zero2": zero(2),
        "zero3": zero(3),
        "zero3-offload": zero(3, **offload),
    }[engine]


def make(folder: Path, engine: str, *, accumulation: int = 3, **changes) -> AMoPOTrainer:
    """Five samples, one per micro-batch: with 2 x 3 micro-batches a step, one rank needs a filler."""
    samples = tiny_runs.samples(SAMPLES)
    settings = {
        "num_train_epochs": STEPS,
        "optim": "adamw_torch",
        "adam_epsilon": 1e-4,
        "learning_rate": 1e-3,
        "lr_scheduler_type": "linear",
        "max_grad_norm": 0.5,
        "gradient_accumulation_steps": accumulation,
        "tokens_per_batch": max(map(packed_length, samples)),
        "max_samples_per_batch": 1,
        "save_strategy": "steps",
        "save_steps": SAVED,
        **settings_of(engine),
        **changes,
    }
    config = tiny_runs.config(folder, **settings)
    trainer = AMoPOTrainer(tiny_runs.qwen2(), config, train_dataset=samples, eval_dataset=samples)
    assert trainer.is_fsdp_enabled == engine.startswith("fsdp2"), "another engine would be tested"
    assert trainer.is_deepspeed_enabled == engine.startswith("zero"), "another engine would be tested"
    return trainer


def whole_weights(trainer: AMoPOTrainer) -> dict[str, torch.Tensor]:
    if trainer.is_deepspeed_enabled:
        from deepspeed.utils import safe_get_full_fp32_param

        return {n: safe_get_full_fp32_param(p).detach().clone() for n, p in trainer.model.named_parameters()}
    return {
        n: (p.full_tensor() if hasattr(p, "full_tensor") else p).detach().clone()
        for n, p in trainer.model.named_parameters()
    }


def run(kind: str, engine: str, directory: Path, **changes) -> None:
    folder = directory / engine
    trainer = make(folder, engine, **changes)
    checkpoint = str(folder / f"checkpoint-{SAVED}") if kind != "train" else None
    trainer.train(resume_from_checkpoint=checkpoint)
    is_sharded = all(isinstance(weight, DTensor) for weight in trainer.model.parameters())
    assert is_sharded == engine.startswith("fsdp2"), "another engine would be tested"
    assert (trainer.deepspeed is not None) == engine.startswith("zero"), "another engine would be tested"
    evaluated = trainer.evaluate()
    weights = whole_weights(trainer)
    if trainer.args.process_index == 0:
        logs = {"history": trainer.state.log_history, "evaluated": evaluated, "steps": trainer.state.global_step}
        (directory / f"{kind}-{engine}.json").write_text(json.dumps(logs))
        torch.save(weights, directory / f"{kind}-{engine}.pt")


def forget() -> None:
    """What one run leaves behind in accelerate and transformers for the next."""
    from accelerate.state import AcceleratorState, GradientState
    from transformers.integrations.deepspeed import unset_hf_deepspeed_config

    AcceleratorState._reset_state(reset_partial_state=True)
    GradientState._reset_state()
    unset_hf_deepspeed_config()
    for name in [name for name in os.environ if name.startswith(("FSDP_", "ACCELERATE_USE_", "ACCELERATE_DEEPSPEED"))]:
        del os.environ[name]


if __name__ == "__main__":
    fsdp_on_cpu.allow()
    directory = Path(sys.argv[1])
    for task in sys.argv[2:]:
        kind, engine = task.split(":")
        # On one rank the micro-batches of two come one after the other.
        changes = {"accumulation": 6} if kind == "resume-on-one" else {}
        run(kind, engine, directory, **changes)
        forget()
    if dist.is_initialized():
        dist.barrier()
    sys.stdout.flush()
    os._exit(0)
