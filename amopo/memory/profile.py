"""Real steps of a model of random weights, measured, beside their plan.

`profile(shape, sample, settings)` -> `Profile`. The model is built on the device from its sizes, layer by layer, with
random weights in the dtype that the precision stores: no weights are read. Each step is a packed row through
`patch_forward`, the loss, and AdamW, as in the trainer, on one device without a sharding engine.
"""

from __future__ import annotations

import copy
import dataclasses
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from amopo.fused_loss import loss_from_logps
from amopo.memory.checkpointing import enable_checkpointing
from amopo.memory.configs import config_of, samples_of
from amopo.memory.meters import CudaMeter
from amopo.memory.plan import Plan, make_plan
from amopo.memory.settings import RunSettings, SampleShape
from amopo.memory.shapes import ModelShape
from amopo.memory.tracking import resident, track
from amopo.packing.pack import pack


@dataclass(frozen=True)
class Profile:
    """Measured peaks by phase in bytes, the plan, tokens per second, and what happened over time.

    resident: the process's peak resident set by phase (empty where the system does not tell); it holds Python, torch
    and what freed tensors have left to the allocator too, so `resident_before` is that before the model was built.
    reserved: bytes that CUDA's allocator held at most, from the model's building on; None elsewhere.
    """

    plan: Plan
    peaks: dict[str, int]
    resident: dict[str, int]
    resident_before: int | None
    reserved: int | None
    timeline: list[tuple[float, str, int]]
    tokens_per_second: float
    device: str

    @property
    def peak(self) -> int:
        return max(self.peaks.values())


def profile(
    shape: ModelShape,
    sample: SampleShape,
    settings: RunSettings,
    *,
    patch: Callable[..., Any],
    steps: int = 3,
    snapshot: str | Path | None = None,
) -> Profile:
    """Run `steps` steps on `settings.device` and measure them.

    Args:
        patch: as in `simulate`. snapshot: a file for pytorch.org/memory_viz (CUDA).
    Raises:
        ValueError: an engine that one process cannot run, fewer than one step, a snapshot without CUDA.
    """
    device = torch.device(settings.device)
    if settings.engine != "single":
        raise ValueError(f"profile runs engine 'single' in one process, not {settings.engine!r}; give --gpus 1")
    if settings.optimizer != "adamw" or settings.offload != "none":
        raise ValueError("profile runs --optimizer adamw without --offload")
    if settings.accumulation > 1:
        raise ValueError("profile runs one micro-batch a step; leave accumulation out")
    if isinstance(steps, bool) or not isinstance(steps, int) or steps < 1:
        raise ValueError(f"steps must be a whole number of at least 1, got {steps!r}")
    if device.type == "cuda" and not torch.cuda.is_available():
        raise ValueError("profile: this torch has no CUDA device; give --device cpu")
    if snapshot is not None and device.type != "cuda":
        raise ValueError("a snapshot for memory_viz is made by CUDA's allocator; leave --snapshot out on a CPU")
    plan = make_plan(shape, sample, settings, observed=True)
    before = resident()
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)  # of what ran before in this process
    seconds = []
    if snapshot is not None:
        torch.cuda.memory._record_memory_history(max_entries=200_000)
    try:
        model = build(shape, settings, device)
        patch(model, budget=settings.head_budget)
        batch = pack(samples_of(sample), sharing=sample.sharing).to(device)
        optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-6, fused=True)
        with track(model, optimizer, device=device) as memory:
            for step in range(steps):
                begin = time.perf_counter()
                _step(model, optimizer, batch, settings, step)
                if device.type == "cuda":
                    torch.cuda.synchronize(device)
                seconds.append(time.perf_counter() - begin)
    finally:  # after an error too: what took the memory is what is asked then
        if snapshot is not None:
            torch.cuda.memory._dump_snapshot(str(snapshot))
            torch.cuda.memory._record_memory_history(enabled=None)
    return Profile(
        plan=plan,
        peaks=memory.peaks,
        resident=memory.resident,
        resident_before=before,
        reserved=memory.meter.reserved() if isinstance(memory.meter, CudaMeter) else None,
        timeline=memory.timeline,
        tokens_per_second=plan.row.tokens / min(seconds[1:] or seconds),
        device=torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu",
    )


def _step(model: nn.Module, optimizer: Any, batch: Any, settings: RunSettings, step: int) -> None:
    with torch.autocast(settings.device, torch.bfloat16, enabled=settings.precision == "mixed"):
        logps = model(input_ids=batch.input_ids, position_ids=batch.position_ids, amopo_layout=batch.layout)
    loss_from_logps(logps, batch.layout, sample_ids=batch.sample_ids, step=step).loss.backward()
    del logps
    optimizer.step()
    optimizer.zero_grad()


def build(shape: ModelShape, settings: RunSettings, device: torch.device) -> nn.Module:
    """A model of random weights on the device, in training mode, with checkpointing and adapters as asked."""
    from transformers import AutoModelForCausalLM
    from transformers.initialization import no_init_weights

    half = settings.precision == "bf16" or (settings.lora is not None and settings.precision == "mixed")
    config = copy.deepcopy(config_of(shape))
    with torch.device(device), no_init_weights():
        model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16 if half else torch.float32)
        model.tie_weights()
    generator = torch.Generator(device).manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.normal_(0.0, 0.02, generator=generator)
            else:  # norms and biases
                parameter.fill_(1.0)
    if settings.lora is not None:
        from peft import LoraConfig, get_peft_model

        options = LoraConfig(
            r=settings.lora, lora_alpha=2 * settings.lora, target_modules="all-linear", task_type="CAUSAL_LM"
        )
        model = get_peft_model(model, options, autocast_adapter_dtype=settings.precision == "mixed")
    model.train()
    if settings.checkpointing:
        enable_checkpointing(model)
    return model


def record(found: Profile) -> dict[str, Any]:
    """The profile as plain values."""
    return {
        "model": found.plan.shape.name,
        "parameters": found.plan.shape.parameters,
        "settings": dataclasses.asdict(found.plan.settings),
        "sample": dataclasses.asdict(found.plan.sample),
        "row": dataclasses.asdict(found.plan.row),
        "planned": found.plan.phases,
        "measured": found.peaks,
        "resident": found.resident,
        "resident_before": found.resident_before,
        "reserved": found.reserved,
        "tokens_per_second": found.tokens_per_second,
        "device": found.device,
        "timeline": found.timeline,
    }
