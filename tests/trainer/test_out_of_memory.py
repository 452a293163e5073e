"""Out of memory says what the plan makes of the run, and which settings would fit."""

from __future__ import annotations

import dataclasses
import re
from types import SimpleNamespace

import pytest
import torch
from torch.distributed.fsdp import CPUOffloadPolicy, OffloadPolicy

pytest.importorskip("transformers")

from scarce import trainer_of
from tiny_runs import config, qwen2, samples
from transformers import TrainerCallback

import amopo.trainer.out_of_memory as module
from amopo.memory.activations import Row
from amopo.memory.exhausted import usable_bytes
from amopo.memory.known_shapes import BUILT_IN
from amopo.memory.plan import make_plan, plan_row
from amopo.memory.precision import numbers_of
from amopo.memory.settings import RunSettings, SampleShape
from amopo.memory.shapes import shape_from_config
from amopo.memory.workload import row_of
from amopo.trainer import AMoPOTrainer
from amopo.trainer.planned_run import PlannedRun, offload_of, planned_run, row_of_layout
from amopo.trainer.planned_run import _offload as offload


def test_the_message_says_what_was_asked_the_plans_view_and_three_settings(tmp_path):
    trainer, _ = trainer_of(tmp_path, fails=lambda tokens, count: count == 2, tokens_per_batch=200)
    with pytest.raises(torch.OutOfMemoryError) as caught:
        trainer.train()
    message = str(caught.value)
    assert "optimizer step 2: CUDA out of memory. Tried to allocate 2.00 GiB" in message
    assert "By the plan a row of" in message and "forward" in message and "step" in message
    assert message.count("MiB);") == 2 and "tokens_per_batch=" in message


def parsed(label: str) -> dict:
    """The settings that an option names, as `AMoPOConfig` takes them."""
    found = {}
    for word in label.replace(" with ", " and ").split(" and "):
        name, given, value = word.partition("=")
        if given:
            found[name] = value == "True" if value in ("True", "False") else int(value)
    return found


def options_in(message: str) -> list[tuple[str, float]]:
    """(label, MiB) of the options in a message."""
    listed = re.split(r"(?:would fit|take least): ", message)[1]
    return [(label, float(mib)) for label, mib in re.findall(r"(?:^|; )(.+?) \(([\d.]+) MiB\)", listed)]


def out_of_memory_message(trainer) -> str:
    with pytest.raises(torch.OutOfMemoryError) as caught:
        trainer.train()
    return str(caught.value)


def by_hand(trainer, row: Row, **changes) -> int:
    """The plan's peak of a row in this run, from settings that are written here."""
    shape = shape_from_config(trainer.model.config.to_dict(), "tiny")
    return plan_row(shape, row, SampleShape(), RunSettings(precision="fp32", device="cpu", **changes)).peak


def test_each_option_fits_by_a_plan_of_its_own_and_can_be_trained_with(tmp_path, monkeypatch):
    trainer, seen = trainer_of(tmp_path, fails=lambda tokens, count: True, tokens_per_batch=400)
    monkeypatch.setattr(module, "usable_bytes", lambda device: limit)
    limit = 1 << 40
    message = out_of_memory_message(trainer)
    row = row_of_layout(trainer.running_layout, 0)
    partial = [(queries, keys) for queries, keys in trainer.running_layout.paths.lengths if queries != keys]
    assert row.mask == max(queries for queries, _ in partial) * max(keys for _, keys in partial)
    assert row.tokens == seen[0] and f"a row of {row.tokens} tokens" in message
    peak = by_hand(trainer, row)
    limit = peak * 9 // 10
    found = [option for option in module.options(planned_run(trainer), trainer) if option.peak <= limit]
    message = str(module.explained(RuntimeError("full"), trainer))
    listed = options_in(message)
    assert "These would fit" in message and len(listed) == 3
    assert [label for label, _ in listed] == [option.label for option in found[:3]]
    for number, (label, mib) in enumerate(listed):
        changes = parsed(label)
        scaled = row
        if "tokens_per_batch" in changes:
            tokens = changes["tokens_per_batch"]
            assert max(trainer.train_lengths) <= tokens < row.tokens
            scaled = Row(*(-(-size * tokens // row.tokens) for size in dataclasses.astuple(row)))
            scaled = dataclasses.replace(scaled, mask=row.mask)
        planned = by_hand(
            trainer, scaled, checkpointing=changes.get("gradient_checkpointing", False),
            head_budget=changes.get("head_budget"),
        )  # fmt: skip
        assert planned <= limit < peak and planned / (1 << 20) == pytest.approx(mib, abs=0.06)
        again = AMoPOTrainer(
            qwen2(), config(tmp_path / str(number), max_steps=1, **{"tokens_per_batch": 400, **changes}),
            train_dataset=samples(12),
        )  # fmt: skip
        again.train()
        assert again.state.global_step == 1


def qwen_of(tokens: int, **settings) -> tuple[PlannedRun, SampleShape]:
    """Qwen2.5-32B with a row of samples of 8 tokens each, which fill any such number of tokens to the last."""
    sample = SampleShape(objectives=2, prompt=1, template=1, chosen=1, rejected=1, samples=tokens // 8)
    run = RunSettings(**{"precision": "bf16", **settings})
    numbers = numbers_of(run.precision, run.engine, lora=run.lora is not None)
    return PlannedRun(BUILT_IN["Qwen2.5-32B"], row_of(sample), run, numbers), sample


def stub(longest: int, budget: int = 8192, **args):
    args = SimpleNamespace(**{"tokens_per_batch": budget, "bf16": False, "fp16": False, **args})
    return SimpleNamespace(args=args, model=qwen2(), longest_sample=longest)


@pytest.mark.parametrize(
    "settings", [{}, {"engine": "ddp", "gpus": 2}, {"engine": "fsdp2", "gpus": 8, "checkpointing": True}]
)
def test_a_smaller_budget_is_planned_as_a_row_of_that_many_tokens(settings):
    now, sample = qwen_of(4200, **settings)
    found = {option.label: option.peak for option in module.options(now, stub(1000))}
    assert {"tokens_per_batch=4096", "tokens_per_batch=2048", "tokens_per_batch=1024"} <= found.keys()
    for tokens in (4096, 2048, 1024):
        of_tokens = dataclasses.replace(sample, samples=tokens // 8)
        assert found[f"tokens_per_batch={tokens}"] == make_plan(now.shape, of_tokens, now.settings).peak
    assert all(peak < now.plan().peak for peak in found.values())


def test_a_run_under_ddp_is_planned_with_its_buckets(tmp_path, monkeypatch):
    trainer, _ = trainer_of(tmp_path, fails=lambda tokens, count: False)
    alone = planned_run(trainer)
    monkeypatch.setattr(type(trainer.args), "world_size", 2)
    run = planned_run(trainer)
    assert (run.settings.engine, run.settings.gpus) == ("ddp", 2)
    trained = sum(p.nbytes for p in trainer.model.parameters())
    assert run.plan().total("step") == alone.plan().total("step") + trained


def test_accumulated_gradients_are_in_the_plan_of_what_runs(tmp_path):
    plans = {}
    for steps in (1, 2):
        trainer, _ = trainer_of(tmp_path, fails=lambda tokens, count: False, gradient_accumulation_steps=steps)
        plans[steps] = planned_run(trainer).plan()
    gradients = sum(p.nbytes for p in trainer.model.parameters())
    assert plans[2].total("forward") == plans[1].total("forward") + gradients


def test_no_budget_below_the_longest_sample_is_offered(tmp_path):
    assert module.smaller_budgets(8192, 8000, 2048) == [4096, 2048]
    assert module.smaller_budgets(8192, 8000, 5000) == [5000]
    assert module.smaller_budgets(8192, 4000, 1000) == [2048, 1024]  # 4096 would hold the row that failed
    assert module.smaller_budgets(8192, 8000, 8000) == []
    long = samples(1, seed=3, longest=40, prefix="long")
    trainer = AMoPOTrainer(qwen2(), config(tmp_path), train_dataset=samples(12), eval_dataset=long)
    assert trainer.longest_sample > max(trainer.train_lengths)


def test_where_nothing_fits_it_says_so(tmp_path, monkeypatch):
    trainer, _ = trainer_of(tmp_path, fails=lambda tokens, count: True)
    monkeypatch.setattr(module, "usable_bytes", lambda device: 1000)
    message = out_of_memory_message(trainer)
    assert "none fits; these take least" in message and "would fit" not in message


def test_what_a_process_can_have_is_without_context_and_other_processes(monkeypatch):
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (10, 100))
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda device: 60)
    monkeypatch.setattr(torch.cuda, "get_per_process_memory_fraction", lambda device: fraction)
    fraction = 1.0
    assert usable_bytes(torch.device("cuda", 0)) == 70
    fraction = 0.5
    assert usable_bytes(torch.device("cuda", 0)) == 50
    assert usable_bytes(torch.device("cpu")) is None


def adapted(model, **options):
    peft = pytest.importorskip("peft")
    return peft.get_peft_model(
        model, peft.LoraConfig(r=2, target_modules="all-linear", task_type="CAUSAL_LM", **options)
    )


def only_the_head_trained():
    model = qwen2().requires_grad_(False)
    model.lm_head.requires_grad_(True)
    return model


KINDS = {
    "float32": (lambda: qwen2(), {}),
    "mixed": (lambda: qwen2(), {"bf16": True}),
    "bfloat16 weights in mixed precision": (lambda: qwen2().bfloat16(), {"bf16": True}),
    "bfloat16": (lambda: qwen2().bfloat16(), {}),
    "LoRA on a bfloat16 base": (lambda: adapted(qwen2().bfloat16()), {"bf16": True}),
    "LoRA on a float32 base": (lambda: adapted(qwen2()), {"bf16": True}),
    "LoRA in float32": (lambda: adapted(qwen2()), {}),
}


@pytest.mark.parametrize("kind", KINDS)
def test_states_are_planned_as_the_parameters_are_stored(tmp_path, kind):
    make, settings = KINDS[kind]
    trainer = AMoPOTrainer(make(), config(tmp_path, max_steps=1, **settings), train_dataset=samples(6))
    held = {}

    class Look(TrainerCallback):
        def on_optimizer_step(self, args, state, control, *, model, optimizer, **kwargs):  # before zero_grad
            held["gradients"] = sum(p.grad.nbytes for p in model.parameters() if p.grad is not None)
            state = (v for values in optimizer.optimizer.state.values() for v in values.values())
            held["optimizer"] = sum(v.nbytes for v in state if v.dim() > 0)

    trainer.add_callback(Look())
    trainer.train()
    held["parameters"] = sum(p.nbytes for p in trainer.model.parameters())
    step = planned_run(trainer).plan().phases["step"]
    assert {name: step[name] for name in held} == held


def test_lora_says_what_base_it_presumes_and_is_planned_on_it():
    pytest.importorskip("peft")
    for engine, gpus in (("single", 1), ("fsdp2", 8)):
        now, sample = qwen_of(4096, engine=engine, gpus=gpus, precision="mixed")
        found = {option.label: option for option in module.options(now, stub(1000, bf16=True))}
        option = found["LoRA of rank 16 (on a base loaded in bfloat16)"]
        planned = make_plan(now.shape, sample, dataclasses.replace(now.settings, lora=16))
        assert option.peak == planned.peak
        assert option.run.plan().phases["step"]["parameters"] < 2.2 * now.shape.parameters / gpus
    now, sample = qwen_of(4096, precision="fp32")
    found = {option.label: option for option in module.options(now, stub(1000))}
    option = found["LoRA of rank 16 (on the base in 32 bits, as it is loaded)"]
    assert option.peak == make_plan(now.shape, sample, dataclasses.replace(now.settings, lora=16)).peak
    assert option.run.plan().phases["step"]["parameters"] > 4 * now.shape.parameters


@pytest.mark.parametrize(
    "freeze, reason",
    [
        (lambda: adapted(qwen2(), modules_to_save=["lm_head"]), "weights are trained, and LoRA of rank 2"),
        (lambda: only_the_head_trained(), "without LoRA"),
        (lambda: adapted(qwen2().bfloat16()), "set bf16=True"),
    ],
)
def test_a_run_that_the_plan_does_not_know_gets_no_figures(tmp_path, freeze, reason):
    trainer, _ = trainer_of(tmp_path, fails=lambda tokens, count: False)
    trainer.model = freeze()
    message = str(module.explained(RuntimeError("full"), trainer))
    assert "there is no plan for this run" in message and reason in message and "GiB" not in message


def test_8_bit_adam_is_offered_only_where_it_runs(monkeypatch):
    there = True
    monkeypatch.setattr(module, "_is_installed", lambda package: there and package == "bitsandbytes")

    def offered(**settings) -> bool:
        now, _ = qwen_of(4096, **settings)
        return any("8bit" in option.label for option in module.options(now, stub(1000)))

    assert offered() and offered(engine="ddp", gpus=2)
    assert not offered(engine="fsdp2", gpus=8) and not offered(device="cpu")
    there = False
    assert not offered()


def test_other_errors_stay_what_they_are(tmp_path):
    trainer, _ = trainer_of(tmp_path, fails=lambda tokens, count: False)
    trainer.model.forward = lambda **kwargs: (_ for _ in ()).throw(RuntimeError("a bug"))
    with pytest.raises(RuntimeError, match="^a bug$"):
        trainer.train()


@pytest.mark.parametrize("policy, expected", [(CPUOffloadPolicy, "all"), (OffloadPolicy, "none")])
def test_what_fsdp2_offloads_is_planned_so(policy, expected):
    state = SimpleNamespace(fsdp_plugin=SimpleNamespace(cpu_offload=policy()))
    assert offload(SimpleNamespace(accelerator=SimpleNamespace(state=state)), "fsdp2") == expected


@pytest.mark.parametrize(
    "zero, expected",
    [
        ({"stage": 3}, "none"),
        ({"stage": 3, "offload_optimizer": {"device": "cpu"}}, "optimizer"),
        ({"stage": 3, "offload_optimizer": {"device": "cpu"}, "offload_param": {"device": "cpu"}}, "all"),
        ({"stage": 3, "offload_optimizer": {"device": "none"}}, "none"),
    ],
)
def test_what_deepspeed_offloads_is_planned_so(zero, expected):
    from accelerate.utils.deepspeed import HfDeepSpeedConfig

    assert offload_of(HfDeepSpeedConfig({"zero_optimization": zero})) == expected


def test_another_stage_of_zero_is_not_planned_as_the_third():
    from accelerate.utils.deepspeed import HfDeepSpeedConfig

    with pytest.raises(ValueError, match="3 is planned"):
        offload_of(HfDeepSpeedConfig({"zero_optimization": {"stage": 2}}))
