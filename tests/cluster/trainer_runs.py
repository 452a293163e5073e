"""Runs of AMoPOTrainer under one engine; a worker of torchrun, or called in one process.

    torchrun --nproc-per-node 2 trainer_runs.py OUTPUT_DIR TASK...      TASK: KIND:ENGINE, or refused:NAME

KIND: `train` four epochs of a step each, in unequal batches with fillers, saving after the second; `resume` goes on
from there in another process. Without saving: `tied` with a tied head, `lora-head` with LoRA on body and head,
`at-once` without accumulation, `whole-gradients` with one reduction a step, and `mixin`, which is transformers' own
Trainer with AMoPOMixin, on padded batches of unequal numbers of samples that have signs. Every task writes
KIND-ENGINE.json (logs, rank 0) and KIND-ENGINE.pt (weights, in full), `train` also what is saved at the end, in
ENGINE/end; `refused:NAME` writes what refusals.py was told, NAME-RANK.txt.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import steps
import tiny_runs
import torch
import torch.distributed as dist
from sharding import check_sharded, let_fsdp_run_on_cpus
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel
from transformers import Trainer, TrainingArguments

from amopo.integrations.hf import AMoPOMixin, PreferenceCollator, PreferenceLoss
from amopo.packing import TokenizedSample, packed_length
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
        "fsdp1": {"fsdp": True, "fsdp_config": {"version": 1, "sync_module_states": False}},
        "fsdp2": fsdp(),
        "fsdp2-sharded": fsdp(state_dict_type="SHARDED_STATE_DICT"),
        "zero1": zero(1),
        "zero2": zero(2),
        "zero3": zero(3),
        "zero3-offload": zero(3, **offload),
    }[engine]


def check_engine(trainer: Trainer, engine: str) -> None:
    """That the engine which ran is the one that was named."""
    if engine.startswith("fsdp2"):
        assert trainer.is_fsdp_enabled
        check_sharded(trainer.model)
    elif engine.startswith("zero"):
        assert trainer.deepspeed.zero_optimization_stage() == int(engine[4])
        offload = trainer.deepspeed.zero_offload_optimizer()
        assert (offload is not None and str(offload.device) == "cpu") == engine.endswith("offload")
    else:
        assert isinstance(trainer.model_wrapped, DistributedDataParallel) == (engine == "ddp")


def make(
    folder: Path, engine: str, *, accumulation: int = 3, tied: bool = False, variant: str = "plain", **changes
) -> AMoPOTrainer:
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
    if engine.startswith("fsdp"):
        let_fsdp_run_on_cpus()
    model = steps.make_model(steps.Case(engine, tied, accumulation, variant))
    return AMoPOTrainer(model, config, train_dataset=samples, eval_dataset=samples)


class MixedTrainer(AMoPOMixin, Trainer):
    pass


def make_mixed(folder: Path, engine: str, *, accumulation: int = 2, **changes) -> MixedTrainer:
    """Seven samples by two: with 2 x 2 micro-batches a step, one rank has four samples and the other three."""
    signs = ((1, -1), (-1, 1), (0, 1), None, (1, -1), (1, 0), (-1, -1))
    samples = [
        TokenizedSample(sample.prompts, sample.chosen, sample.rejected, sample.id, given)
        for sample, given in zip(tiny_runs.samples(len(signs)), signs, strict=True)
    ]
    arguments = TrainingArguments(
        str(folder),
        use_cpu=True,
        num_train_epochs=STEPS,
        optim="adamw_torch",
        adam_epsilon=1e-4,
        learning_rate=1e-3,
        max_grad_norm=0.5,
        per_device_train_batch_size=2,
        per_device_eval_batch_size=2,
        gradient_accumulation_steps=accumulation,
        accelerator_config={"even_batches": False},  # or accelerate would repeat a sample
        logging_steps=1,
        save_strategy="no",
        disable_tqdm=True,
        seed=7,
        **settings_of(engine),
        **changes,
    )
    if engine.startswith("fsdp"):
        let_fsdp_run_on_cpus()
    return MixedTrainer(
        tiny_runs.qwen2(),
        arguments,
        train_dataset=samples,
        eval_dataset=samples,
        data_collator=PreferenceCollator(pad_token_id=0, packed=False),
        amopo=PreferenceLoss(objectives=tiny_runs.OBJECTIVES, beta=2.0, seed=7),
    )


KINDS = {
    "tied": {"tied": True, "save_strategy": "no"},
    "lora-head": {"variant": "lora-head", "save_strategy": "no"},
    # Three samples on one rank, two on the other.
    "at-once": {"accumulation": 1, "max_samples_per_batch": 3, "tokens_per_batch": 200, "save_strategy": "no"},
    "whole-gradients": {
        "accelerator_config": {"gradient_accumulation_kwargs": {"sync_each_batch": False}},
        "save_strategy": "no",
    },
    "bf16": {"bf16": True, "save_strategy": "no"},
    # On one rank the micro-batches of two come one after the other.
    "resume-on-one": {"accumulation": 6},
}


def check_gradients_of_micro_batches(trainer: Trainer, *, sharded: bool) -> list[int]:
    """After every micro-batch but a step's last: FSDP2 has each gradient in pieces, or has not reduced it yet."""
    inner, seen = trainer.training_step, []

    def step(*args, **kwargs):
        loss = inner(*args, **kwargs)
        if not trainer.accelerator.sync_gradients:
            for name, parameter in trainer.model.named_parameters():
                if not parameter.requires_grad:
                    continue
                if not sharded:
                    assert parameter.grad is None, f"the gradient of {name} was reduced"
                    continue
                assert isinstance(parameter.grad, DTensor), f"the gradient of {name} is not sharded"
                local = parameter.grad.to_local().numel()
                assert local == parameter.to_local().numel() < parameter.numel(), name
            seen.append(trainer.state.global_step)
        return loss

    trainer.training_step = step
    return seen


def whole_weights(trainer: Trainer) -> dict[str, torch.Tensor]:
    if trainer.is_deepspeed_enabled:
        from deepspeed_engines import whole_weight as whole
    else:
        whole = steps.Engine.whole
    return {name: whole(parameter) for name, parameter in trainer.model.named_parameters()}


def run(kind: str, engine: str, directory: Path, **changes) -> None:
    folder = directory / engine
    if kind in ("mixin", "mixin-bf16"):
        trainer = make_mixed(folder, engine, bf16=kind == "mixin-bf16", **changes)
    else:
        trainer = make(folder, engine, **{**KINDS.get(kind, {}), **changes})
    seen = None
    if engine.startswith("fsdp2"):
        seen = check_gradients_of_micro_batches(trainer, sharded=kind != "whole-gradients")
    trainer.train(resume_from_checkpoint=str(folder / f"checkpoint-{SAVED}") if kind.startswith("resume") else None)
    check_engine(trainer, engine)
    assert seen is None or bool(seen) == (trainer.args.gradient_accumulation_steps > 1)
    evaluated = trainer.evaluate()
    if kind == "train":
        trainer.save_model(str(folder / "end"))
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
    directory = Path(sys.argv[1])
    for task in sys.argv[2:]:
        kind, name = task.split(":")
        if kind == "refused":
            import refusals

            message = refusals.message_of(name, directory)
            (directory / f"{name}-{os.environ['RANK']}.txt").write_text(message)
        else:
            run(kind, name, directory)
        forget()
    if dist.is_initialized():
        dist.barrier()
    sys.stdout.flush()
    os._exit(0)
