"""Out of memory says what to do, and auto_budget lowers the budget before the first step only."""

from __future__ import annotations

import dataclasses
import logging
import re
import shutil
from types import SimpleNamespace

import pytest
import torch

pytest.importorskip("transformers")

from tiny_runs import config, qwen2, samples
from transformers import TrainerCallback

import amopo.trainer.out_of_memory as module
from amopo.memory import track
from amopo.memory.activations import Row
from amopo.memory.exhausted import usable_bytes
from amopo.memory.plan import make_plan, plan_row
from amopo.memory.precision import numbers_of
from amopo.memory.settings import RunSettings, SampleShape
from amopo.memory.shapes import BUILT_IN, shape_from_config
from amopo.memory.workload import row_of
from amopo.trainer import AMoPOTrainer, token_budget
from amopo.trainer.planned_run import PlannedRun, offload_of, planned_run, row_of_layout


def trainer_of(tmp_path, *, fails, **changes):
    """A trainer whose model has no memory for rows that `fails` says so of; (trainer, tokens of all rows)."""
    trainer = AMoPOTrainer(qwen2(), config(tmp_path, **changes), train_dataset=samples(12))
    seen: list[int] = []
    forward = trainer.model.forward

    def limited(*args, **kwargs):
        tokens = kwargs["input_ids"].shape[1]
        seen.append(tokens)
        if fails(tokens, len(seen)):
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 is full.\nmore")
        return forward(*args, **kwargs)

    trainer.model.forward = limited
    return trainer, seen


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


def test_the_budget_is_not_touched_without_being_asked(tmp_path):
    trainer, _ = trainer_of(tmp_path, fails=lambda tokens, count: tokens > 100)
    with pytest.raises(torch.OutOfMemoryError):
        trainer.train()
    assert trainer.args.tokens_per_batch == 400


def test_auto_budget_halves_before_the_first_step_and_says_so(tmp_path, caplog):
    trainer, seen = trainer_of(tmp_path, fails=lambda tokens, count: tokens > 120, auto_budget=True)
    with caplog.at_level(logging.WARNING, logger="amopo"):
        trainer.train()
    assert trainer.args.tokens_per_batch == 100
    assert [record.args for record in caplog.records if "auto_budget" in record.message] == [(400, 200), (200, 100)]
    tried = 3  # two that failed, one that fitted
    assert max(seen[tried:]) <= 100 and trainer.state.global_step > 0
    assert all(p.grad is None or p.grad.isfinite().all() for p in trainer.model.parameters())


def test_auto_budget_does_nothing_in_mid_run(tmp_path):
    trainer, _ = trainer_of(tmp_path, fails=lambda tokens, count: count == 3, auto_budget=True, tokens_per_batch=200)
    with pytest.raises(torch.OutOfMemoryError, match="optimizer step 2"):
        trainer.train()
    assert trainer.args.tokens_per_batch == 200


def test_auto_budget_ends_where_the_longest_sample_does_not_fit(tmp_path):
    trainer, _ = trainer_of(tmp_path, fails=lambda tokens, count: True, auto_budget=True)
    with pytest.raises(torch.OutOfMemoryError, match="Tried to allocate"):
        trainer.train()
    assert trainer.args.tokens_per_batch >= max(trainer.train_lengths)


def test_trying_a_batch_changes_nothing_in_the_training(tmp_path):
    ways = {}
    for name, auto in (("plain", False), ("auto", True)):
        trainer, _ = trainer_of(tmp_path / name, fails=lambda tokens, count: False, auto_budget=auto)
        trainer.train()
        ways[name] = [p.detach().clone() for p in trainer.model.parameters()]
    assert all(torch.equal(a, b) for a, b in zip(ways["plain"], ways["auto"], strict=True))


def wide(tmp_path, **changes):
    """A model whose weights outweigh what its few tokens take."""
    model = qwen2(hidden_size=64, intermediate_size=512)
    settings = {"tokens_per_batch": 60, "max_samples_per_batch": 1, **changes}
    return AMoPOTrainer(model, config(tmp_path, **settings), train_dataset=samples(6))


def tried_bytes(trainer) -> int:
    trainer.create_optimizer_and_scheduler(4)  # as before the first step: without state
    with track(trainer.model) as memory:
        assert token_budget._tried(trainer) is None
    return max(memory.peaks.values())


@pytest.mark.parametrize("accumulation", [1, 2])
def test_what_is_tried_takes_what_a_step_of_the_training_takes(tmp_path, accumulation):
    tried = tried_bytes(wide(tmp_path, gradient_accumulation_steps=accumulation))
    trainer = wide(tmp_path, gradient_accumulation_steps=accumulation)
    with track(trainer.model) as memory:
        trainer.train()
    assert len(memory.steps) == 6 // accumulation
    assert tried == pytest.approx(max(memory.peaks.values()), rel=0.03)


def test_the_buckets_of_ddp_are_set_aside(tmp_path, monkeypatch):
    alone = tried_bytes(wide(tmp_path))
    trainer = wide(tmp_path)
    trainer.get_train_dataloader()
    monkeypatch.setattr(type(trainer.args), "world_size", 2)
    assert tried_bytes(trainer) - alone == sum(p.nbytes for p in trainer.model.parameters())


def test_a_run_whose_budget_was_lowered_is_resumed_with_it(tmp_path, caplog):
    def lowered(name, **changes):
        changes = {"auto_budget": True, "save_strategy": "steps", "save_steps": 2, "num_train_epochs": 2, **changes}
        return trainer_of(tmp_path / name, fails=lambda tokens, count: tokens > 120, **changes)[0]

    whole = lowered("whole")
    whole.train()
    first = lowered("cut", max_steps=-1)
    first.train()
    steps = first.state.global_step
    for folder in (tmp_path / "cut").glob("checkpoint-*"):  # as if it had ended after the second step
        if folder.name != "checkpoint-2":
            shutil.rmtree(folder)
    again = lowered("cut")
    with caplog.at_level(logging.WARNING, logger="amopo"):
        again.train(resume_from_checkpoint=True)
    assert again.args.tokens_per_batch == 100 and again.state.global_step == steps
    assert "has lowered tokens_per_batch from 400 to 100" in caplog.text
    for a, b in zip(whole.model.parameters(), again.model.parameters(), strict=True):
        assert torch.equal(a, b)
    for changes in ({"auto_budget": False}, {"tokens_per_batch": 350}):
        with pytest.raises(ValueError, match="tokens_per_batch"):
            lowered("cut", **changes).train(resume_from_checkpoint=True)


@pytest.mark.parametrize("given, recorded, kept", [(400, 100, 100), (401, 100, 100), (400, 400, 400), (400, 300, 400)])
def test_only_a_halved_budget_is_taken_over(given, recorded, kept):
    args = SimpleNamespace(tokens_per_batch=given)
    token_budget.keep_budget(args, {"tokens_per_batch": recorded})
    assert args.tokens_per_batch == kept
    token_budget.keep_budget(args, None)
    assert args.tokens_per_batch == kept


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
