"""The engines of steps.py that need DeepSpeed; on CPUs, where it builds its communication once (a C++ compiler)."""

from __future__ import annotations

import contextlib
import os

import deepspeed
import torch
from deepspeed.utils import safe_get_full_fp32_param, safe_get_full_grad
from steps import Accelerate, Engine


def start() -> None:
    deepspeed.init_distributed(dist_backend="gloo", verbose=False)


def config(stage: int, *, accumulation: int = 1, offload: bool = False) -> dict:
    """Parameters of every size are partitioned: the default threshold would leave a tiny model whole."""
    zero: dict = {"stage": stage}
    if stage == 3:
        zero["stage3_param_persistence_threshold"] = 0
    if offload:
        zero |= {"offload_optimizer": {"device": "cpu"}, "offload_param": {"device": "cpu"}}
    return {
        "train_micro_batch_size_per_gpu": 1,
        "gradient_accumulation_steps": accumulation,
        "zero_optimization": zero,
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
        "gradient_clipping": 0.0,  # by default DeepSpeed clips at a norm of 1.0
        "steps_per_print": 1000,
    }


def whole_weight(parameter: torch.nn.Parameter) -> torch.Tensor:
    """A copy of a weight in full, on every rank."""
    if parameter.requires_grad:
        return Engine.whole(safe_get_full_fp32_param(parameter))
    with deepspeed.zero.GatheredParameters([parameter]):  # the optimizer knows nothing of it
        return Engine.whole(parameter)


class Zero(Engine):
    stage, offload = 1, False

    def prepare(self, accumulation: int) -> None:
        self.called, *_ = deepspeed.initialize(
            model=self.model,
            optimizer=self.make_optimizer(),
            config=config(self.stage, accumulation=accumulation, offload=self.offload),
        )

    def backward(self, loss: torch.Tensor, is_last: bool) -> None:
        # The loss is normalised over the whole step already: DeepSpeed must not divide by the micro-batches again.
        self.called.backward(loss, scale_wrt_gas=False)
        if not is_last:
            self.called.step()

    def gradients(self) -> dict[str, torch.Tensor]:
        trained = ((name, p) for name, p in self.model.named_parameters() if p.requires_grad)
        return {name: self.whole(safe_get_full_grad(p)) for name, p in trained}

    def check(self) -> None:
        assert self.called.zero_optimization_stage() == self.stage
        if self.stage == 3:
            assert all(p.numel() == 0 for p in self.model.parameters()), "weights must be partitioned"

    def step(self) -> None:
        self.called.step()

    def weights(self) -> dict[str, torch.Tensor]:
        return {name: whole_weight(p) for name, p in self.model.named_parameters()}


class Zero2(Zero):
    stage = 2


class Zero3(Zero):
    stage = 3


class Zero3Offload(Zero3):
    offload = True


class AccelerateZero2(Zero2, Accelerate):
    def plugins(self) -> dict:
        from accelerate import DeepSpeedPlugin

        # With cpu=True accelerate would take DDP and say nothing.
        return {
            "cpu": False,
            "deepspeed_plugin": DeepSpeedPlugin(hf_ds_config=config(self.stage, accumulation=self.accumulation)),
        }

    def prepare(self, accumulation: int) -> None:
        self.accumulation = accumulation
        os.environ["ACCELERATE_USE_DEEPSPEED"] = "true"
        Accelerate.prepare(self, accumulation)
        os.environ.pop("ACCELERATE_USE_DEEPSPEED")
        # accelerate's backward steps too; the gradients are read in between.
        engine_step = self.called.step

        def step(*arguments, **options):
            self.before_step = Zero.gradients(self)
            return engine_step(*arguments, **options)

        self.called.step = step

    def accumulate(self, is_last: bool) -> contextlib.AbstractContextManager:
        # What Trainer does: accelerate's engine steps at the end of a backward that synchronises.
        self.accelerator.gradient_state._set_sync_gradients(is_last)
        return contextlib.nullcontext()

    def backward(self, loss: torch.Tensor, is_last: bool) -> None:
        self.accelerator.backward(loss, scale_wrt_gas=False)

    def gradients(self) -> dict[str, torch.Tensor]:
        return self.before_step

    def step(self) -> None:
        """Done in the backward."""


class AccelerateZero3(AccelerateZero2):
    stage = 3


ENGINES = {
    "zero1": Zero,
    "zero2": Zero2,
    "zero3": Zero3,
    "zero3-offload": Zero3Offload,
    "accelerate-zero2": AccelerateZero2,
    "accelerate-zero3": AccelerateZero3,
}
