"""LoRA in mixed precision is planned on the base that is there, in float32 or in bfloat16."""

from __future__ import annotations

import dataclasses

import pytest

pytest.importorskip("transformers")
pytest.importorskip("peft")

import torch

from amopo.fused_loss import loss_from_logps
from amopo.memory import track
from amopo.memory.checkpointing import enable_checkpointing
from amopo.memory.configs import config_of, samples_of
from amopo.memory.known_shapes import BUILT_IN
from amopo.memory.plan import plan_row
from amopo.memory.settings import RunSettings, SampleShape
from amopo.memory.workload import row_of
from amopo.packing import pack
from amopo.trainer.forward import patch_forward
from amopo.trainer.planned_run import precision_of

SIZES = {"layers": 4, "hidden": 512, "intermediate": 1408, "heads": 8, "kv_heads": 2, "head_dim": 64, "vocab": 2048}
SHAPE = dataclasses.replace(BUILT_IN["Qwen2.5-7B"], **SIZES)
SAMPLE = SampleShape(objectives=2, prompt=64, template=8, chosen=64, rejected=64)


def measured(base: torch.dtype, *, checkpointing: bool) -> dict[str, int]:
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_config(config_of(SHAPE), dtype=base)
    options = LoraConfig(r=8, lora_alpha=16, target_modules="all-linear", task_type="CAUSAL_LM")
    model = get_peft_model(model, options).train()
    if checkpointing:
        enable_checkpointing(model)
    patch_forward(model)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], fused=True)
    batch = pack(samples_of(SAMPLE), sharing=SAMPLE.sharing)
    with track(model, optimizer) as memory:
        for step in range(2):
            with torch.autocast("cpu", torch.bfloat16):
                logps = model(
                    input_ids=batch.input_ids, position_ids=batch.position_ids, amopo_layout=batch.layout
                )  # fmt: skip
            loss_from_logps(logps, batch.layout, sample_ids=batch.sample_ids, step=step).loss.backward()
            del logps
            optimizer.step()
            optimizer.zero_grad()
    return memory.peaks


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("base", [torch.float32, torch.bfloat16])
def test_a_step_takes_what_is_planned_for_the_dtype_of_its_base(base, checkpointing):
    peaks = measured(base, checkpointing=checkpointing)
    precision, numbers = precision_of("single", 4, base.itemsize, lora=True, mixed=True)
    settings = RunSettings(precision=precision, lora=8, checkpointing=checkpointing, device="cpu")
    plan = plan_row(SHAPE, row_of(SAMPLE), SAMPLE, settings, observed=True, numbers=numbers)
    for phase in ("forward", "backward", "step"):  # the head of so few rows takes less than its smallest block
        assert plan.total(phase) == pytest.approx(peaks[phase], rel=0.05), phase


def test_sixteen_bit_weights_have_nothing_that_autocast_would_round():
    assert precision_of("single", 2, 2, lora=False, mixed=True)[0] == "bf16"
    assert precision_of("single", 4, 4, lora=False, mixed=True)[0] == "mixed"
    assert precision_of("fsdp2", 4, 4, lora=True, mixed=True)[1].base == 4
    with pytest.raises(ValueError, match="set bf16=True"):
        precision_of("zero3", 4, 4, lora=False, mixed=False)
