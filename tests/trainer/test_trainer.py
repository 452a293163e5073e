"""Training steps are those of the formula over all samples of the step, however they are batched."""

import math

import pytest
import tiny_runs
import torch
from short_runs import relative_error, steps_of, three_and_one, train
from torch import nn

from amopo.packing import TokenizedSample, packed_length, packed_size
from amopo.trainer import AMoPOTrainer
from amopo.trainer.forward import is_patched


# Adam divides by the gradient's size: where that is rounding, so is the direction of the step.
@pytest.mark.parametrize(("optim", "tolerance"), [("sgd", 3e-6), ("adamw_torch", 3e-4)])
def test_unequal_micro_batches_equal_one_batch(tmp_path, optim, tolerance):
    samples, budget = three_and_one()
    settings = {"num_train_epochs": 3, "optim": optim, "learning_rate": 1e-3, "weights": "gaussian"}
    whole, whole_grads = train(tmp_path / "whole", samples, tokens_per_batch=10_000, **settings)
    parts, parts_grads = train(
        tmp_path / "parts", samples, tokens_per_batch=budget, gradient_accumulation_steps=2, **settings
    )
    sizes = sorted(len(batch) for batch in parts.get_train_dataloader().batch_sampler)
    assert sizes == [1, 3] and len(whole.get_train_dataloader()) == 1

    assert len(whole_grads) == len(parts_grads) == 3
    assert relative_error(parts_grads[0], whole_grads[0]) < 1e-5
    assert relative_error(tiny_runs.weights_of(parts.model), tiny_runs.weights_of(whole.model)) < tolerance
    for got, expected in zip(steps_of(parts), steps_of(whole), strict=True):
        for name in expected:
            # the machine's, and what depends on the batches
            if not name.endswith("tokens_per_second") and name not in ("amopo/fill", "amopo/peak_memory_gib"):
                assert got[name] == pytest.approx(expected[name], rel=1e-4, abs=1e-5), name


def test_loss_and_gradients_are_those_of_the_formula(tmp_path):
    samples, budget = three_and_one()
    alpha = torch.tensor([0.25, 0.75], dtype=torch.float64)
    trainer, (gradients,) = train(
        tmp_path,
        samples,
        tokens_per_batch=budget,
        gradient_accumulation_steps=2,
        weights="fixed",
        objective_weights=[1.0, 3.0],
        gamma=0.5,
        learning_rate=0.0,
    )
    truth = tiny_runs.qwen2().double()
    losses = []
    for sample in samples:
        margins = []
        for prompt in sample.prompts:
            averages = []
            for response in (sample.chosen, sample.rejected):
                ids = torch.tensor([prompt + response])
                logps = truth(input_ids=ids, use_cache=False).logits.log_softmax(-1)[0, len(prompt) - 1 : -1]
                averages.append(logps.gather(1, ids[0, len(prompt) :, None]).mean())
            margins.append(2.0 * (averages[0] - averages[1]) - 0.5)
        losses.append((alpha * nn.functional.softplus(-torch.stack(margins))).sum())
    loss = torch.stack(losses).mean()
    loss.backward()
    assert steps_of(trainer)[0]["loss"] == pytest.approx(loss.item(), rel=1e-5)
    expected = {n: p.grad.float() for n, p in truth.named_parameters()}
    assert relative_error(gradients, expected) < 1e-4


def test_training_separates_the_responses(tmp_path):
    trainer, _ = train(tmp_path, tiny_runs.samples(12), num_train_epochs=8)
    first, last = steps_of(trainer)[0], steps_of(trainer)[-1]
    assert last["loss"] < 0.5 * first["loss"]
    assert last["rewards/accuracies"] == 1.0
    assert last["rewards/margins"] > first["rewards/margins"]
    for name in tiny_runs.OBJECTIVES:
        assert {f"rewards/margins/{name}", f"amopo/alpha/{name}", f"amopo/mu/{name}", f"amopo/sigma/{name}"} <= {*last}
    assert last["tokens_per_second"] > 0


def test_logging_less_often_averages_over_the_interval(tmp_path):
    samples = tiny_runs.samples(12)
    settings = {"tokens_per_batch": 120, "learning_rate": 0.0, "num_train_epochs": 1}
    each, _ = train(tmp_path / "each", samples, logging_steps=1, **settings)
    rare, _ = train(tmp_path / "rare", samples, logging_steps=1000, logging_strategy="epoch", **settings)
    (entry,) = steps_of(rare)
    counts = [len(batch) for batch in each.get_train_dataloader().batch_sampler]
    weighted = sum(n * e["rewards/margins"] for n, e in zip(counts, steps_of(each), strict=True)) / 12
    assert len(counts) > 2
    assert entry["rewards/margins"] == pytest.approx(weighted, rel=1e-6)


def test_evaluation_is_an_exact_mean_and_repeatable(tmp_path):
    samples = tiny_runs.samples(9, prefix="e")
    model = tiny_runs.phi3(resid_pdrop=0.3)
    results = []
    for budget in (150, 10_000):
        config = tiny_runs.config(tmp_path, tokens_per_batch=budget)
        trainer = AMoPOTrainer(model, config, eval_dataset=samples)
        results += [trainer.evaluate(), trainer.evaluate()]
    assert len(trainer.get_eval_dataloader()) == 1
    for result in results[1:]:
        for name, value in results[0].items():
            if name not in ("eval_runtime", "eval_samples_per_second"):
                assert result[name] == pytest.approx(value, rel=1e-5, abs=1e-6), name
    assert "eval_rewards/margins/brevity" in results[0]
    assert not any("steps_per_second" in name for name in results[0])


def test_evaluation_does_not_change_training(tmp_path):
    samples, settings = tiny_runs.samples(8), {"num_train_epochs": 2, "tokens_per_batch": 200}
    plain, _ = train(tmp_path / "plain", samples, model=tiny_runs.phi3(resid_pdrop=0.3), **settings)
    trainer = AMoPOTrainer(
        tiny_runs.phi3(resid_pdrop=0.3),
        tiny_runs.config(tmp_path / "eval", eval_strategy="steps", eval_steps=1, **settings),
        train_dataset=samples,
        eval_dataset={"one": tiny_runs.samples(3, prefix="a"), "two": tiny_runs.samples(4, prefix="b")},
    )
    trainer.train()
    assert relative_error(tiny_runs.weights_of(trainer.model), tiny_runs.weights_of(plain.model)) == 0
    assert any("eval_two_loss" in entry for entry in trainer.state.log_history)


def test_bf16_follows_fp32_closely(tmp_path):
    samples = tiny_runs.samples(6)
    settings = {"num_train_epochs": 4, "learning_rate": 2e-3}
    full, _ = train(tmp_path / "fp32", samples, **settings)
    mixed, _ = train(tmp_path / "bf16", samples, bf16=True, **settings)
    assert all(p.dtype == torch.float32 for p in mixed.model.parameters())
    for got, expected in zip(steps_of(mixed), steps_of(full), strict=True):
        assert got["loss"] == pytest.approx(expected["loss"], rel=0.05, abs=0.02)
        assert got["loss"] != expected["loss"], "bf16 must have run"
    assert is_patched(mixed.model), "seen through accelerate's wrapper"
    evaluated = mixed.evaluate(samples)
    assert math.isfinite(evaluated["eval_loss"])


def test_a_model_in_bf16_trains(tmp_path):
    trainer, _ = train(tmp_path, tiny_runs.samples(6), model=tiny_runs.qwen2().bfloat16(), num_train_epochs=6)
    assert steps_of(trainer)[-1]["loss"] < steps_of(trainer)[0]["loss"]


@pytest.mark.parametrize("reentrant", [False, True])
def test_gradient_checkpointing_changes_no_gradient(tmp_path, reentrant):
    samples, budget = three_and_one()
    settings = {"tokens_per_batch": budget, "gradient_accumulation_steps": 2}
    _, plain = train(tmp_path / "plain", samples, **settings)
    _, checkpointed = train(
        tmp_path / "checkpointed",
        samples,
        gradient_checkpointing=True,
        gradient_checkpointing_kwargs={"use_reentrant": reentrant},
        **settings,
    )
    assert relative_error(checkpointed[0], plain[0]) < 1e-6


def lora(model, **settings):
    peft = pytest.importorskip("peft")
    torch.manual_seed(1)
    config = peft.LoraConfig(r=4, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM", **settings)
    model = peft.get_peft_model(model, config)
    # B starts at zero, where A has no gradient
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            nn.init.normal_(parameter, std=0.1)
    return model


@pytest.mark.parametrize("checkpointing", ["off", "default", False, True])
def test_lora_gets_the_gradients_of_its_merged_weights(tmp_path, checkpointing):
    samples, budget = three_and_one()
    settings = {"tokens_per_batch": budget, "gradient_accumulation_steps": 2}
    if checkpointing != "off":
        settings["gradient_checkpointing"] = True
    if isinstance(checkpointing, bool):
        settings["gradient_checkpointing_kwargs"] = {"use_reentrant": checkpointing}
    trainer, (gradients,) = train(tmp_path, samples, model=lora(tiny_runs.qwen2()), optim="sgd", **settings)
    assert gradients and all("lora_" in name for name in gradients)

    merged = lora(tiny_runs.qwen2()).merge_and_unload().requires_grad_(True)
    _, (full,) = train(
        tmp_path / "merged", samples, model=merged, tokens_per_batch=budget, gradient_accumulation_steps=2
    )
    start = dict(lora(tiny_runs.qwen2()).named_parameters())
    for layer in range(2):
        for name in ("q_proj", "v_proj"):
            key = f"model.layers.{layer}.self_attn.{name}"
            dense = full[f"{key}.weight"]  # d loss / d W, and W = W0 + 2 B A for rank 4, alpha 8
            a, b = (start[f"base_model.model.{key}.lora_{x}.default.weight"] for x in "AB")
            for x, expected in (("A", 2 * b.T @ dense), ("B", 2 * dense @ a.T)):
                got = gradients[f"base_model.model.{key}.lora_{x}.default.weight"]
                assert ((got - expected).norm() / expected.norm()).item() < 1e-4
    before = tiny_runs.weights_of(lora(tiny_runs.qwen2()))
    after = tiny_runs.weights_of(trainer.model)
    changed = {name for name in before if not before[name].equal(after[name])}
    assert changed and all("lora_" in name for name in changed)


def test_the_trained_model_generates_and_loads_again(tmp_path):
    trainer, _ = train(tmp_path, tiny_runs.samples(4))
    ids = torch.tensor([[5, 6, 7]])
    generated = trainer.model.generate(ids, max_new_tokens=5, do_sample=False)
    trainer.save_model(str(tmp_path / "model"))
    loaded = type(trainer.model).from_pretrained(tmp_path / "model")
    assert loaded.generate(ids, max_new_tokens=5, do_sample=False).equal(generated)
    assert (tmp_path / "model" / "amopo_run.json").is_file()


def test_nothing_is_reported_anywhere(tmp_path):
    trainer, _ = train(tmp_path, tiny_runs.samples(4))
    names = {type(callback).__name__ for callback in trainer.callback_handler.callbacks}
    assert not any(word in name for name in names for word in ("Wandb", "TensorBoard", "MLflow", "Comet", "Trackio"))


@pytest.mark.parametrize("sharing", ["none", "pair", "tree"])
def test_what_is_shared_changes_no_gradient_and_is_logged(tmp_path, sharing):
    head = [11, 12, 13]
    samples = [
        TokenizedSample([head + p for p in s.prompts], [5, *s.chosen], [5, *s.rejected], s.id)
        for s in tiny_runs.samples(6)
    ]
    settings = {"num_train_epochs": 1, "weights": "gaussian", "tokens_per_batch": 10_000}
    _, (expected,) = train(tmp_path / "alone", samples, sharing="none", **settings)
    trainer, (got,) = train(tmp_path / "shared", samples, sharing=sharing, self_check=True, **settings)
    assert relative_error(got, expected) < 1e-5
    (entry,) = steps_of(trainer)
    tokens = sum(packed_length(s, sharing=sharing) for s in samples)
    assert entry["amopo/sharing"] == pytest.approx(sum(packed_length(s, sharing="none") for s in samples) / tokens)
    assert entry["amopo/fill"] == pytest.approx(tokens / 10_000)
    ratio = entry["represented_tokens_per_second"] / entry["tokens_per_second"]
    assert ratio == pytest.approx(entry["amopo/sharing"])


def test_response_rows_have_a_budget_of_their_own(tmp_path):
    samples = tiny_runs.samples(8)
    rows = [packed_size(s).rows for s in samples]
    trainer = AMoPOTrainer(
        tiny_runs.qwen2(), tiny_runs.config(tmp_path, rows_per_batch=max(rows) + 20), train_dataset=samples
    )
    counts = [batch["amopo_layout"].row_index.shape[0] for batch in trainer.get_train_dataloader()]
    assert sum(counts) == sum(rows) and max(counts) <= max(rows) + 20 and len(counts) > 1
    config = tiny_runs.config(tmp_path, rows_per_batch=max(rows) - 1)
    with pytest.raises(ValueError, match=f"takes {max(rows)} response rows, more than the row budget"):
        AMoPOTrainer(tiny_runs.qwen2(), config, train_dataset=samples).get_train_dataloader()


def test_the_noise_of_the_weights_is_new_at_every_step_and_the_same_in_every_run(tmp_path):
    def alphas(run, **settings):
        settings = {"num_train_epochs": 3, "learning_rate": 0.0, "tokens_per_batch": 10_000, **settings}
        trainer, _ = train(tmp_path / run, tiny_runs.samples(4), **settings)
        return [entry["amopo/alpha/brevity"] for entry in steps_of(trainer)]

    first = alphas("first")
    assert len({round(value, 9) for value in first}) == 3
    assert alphas("again") == first
    assert alphas("other", noise_seed=99) != first
    assert len({round(value, 6) for value in alphas("mean", weights="mean")}) == 1


def test_workers_bring_the_same_batches(tmp_path):
    settings = {"tokens_per_batch": 200, "num_train_epochs": 2}
    inline, _ = train(tmp_path / "inline", tiny_runs.samples(9), **settings)
    workers, _ = train(tmp_path / "workers", tiny_runs.samples(9), dataloader_num_workers=1, **settings)
    assert relative_error(tiny_runs.weights_of(workers.model), tiny_runs.weights_of(inline.model)) == 0


def test_a_trainer_can_train_again_for_longer(tmp_path):
    trainer, _ = train(tmp_path, tiny_runs.samples(9), tokens_per_batch=200)
    steps = trainer.state.global_step
    trainer.args.num_train_epochs = 3
    trainer.train()
    assert trainer.state.global_step >= 3 * steps
