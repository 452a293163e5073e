"""TRL's formats give our samples, our trainer trains on them, and our losses are TRL's where they coincide."""

import copy
import sys

import pytest
import tiny
import tiny_runs
import torch
from hf_runs import arguments, difference, logs
from transformers import Trainer

import amopo
from amopo.data import DataError
from amopo.objectives.dpo import dpo

trl = pytest.importorskip("trl", reason="trl is not installed: pip install 'amopo[trl]'")
datasets = pytest.importorskip("datasets")

from amopo.integrations.hf import AMoPOMixin, PreferenceLoss  # noqa: E402
from amopo.integrations.trl import (  # noqa: E402
    AMoPOConfig,
    AMoPOTrainer,
    PreferenceCollator,
    tokenize_preferences,
)

OPTIONS = {"objectives": tiny.OBJECTIVES, "scales": tiny.SCALES}


@pytest.fixture(scope="module")
def tokenizer():
    return tiny.load()[1]


@pytest.fixture
def model(tokenizer):
    """A small model of the tokenizer's vocabulary that is not near uniform."""
    return tiny_runs.qwen2(vocab_size=len(tokenizer), max_position_embeddings=512, eos_token_id=tokenizer.eos_token_id)


def plain(rows):
    return [{**row, **{side: row[side][0]["content"] for side in ("prompt", "chosen", "rejected")}} for row in rows]


def implicit(rows):
    """No prompt column: chosen and rejected hold the whole conversation."""
    return [
        {key: row["prompt"] + row[key] if key in ("chosen", "rejected") else row[key] for key in row if key != "prompt"}
        for row in rows
    ]


def settings(folder, **changes):
    values = {
        "output_dir": str(folder),
        "objectives": tiny.OBJECTIVES,
        "scales": "helpfulness=0:4,brevity=0:4",
        "template": "brief",
        "use_cpu": True,
        "tokens_per_batch": 1024,
        "learning_rate": 1e-2,
        "logging_steps": 1,
        "max_steps": 4,
        "save_strategy": "no",
        "disable_tqdm": True,
        "report_to": "none",
    }
    return AMoPOConfig(**{**values, **changes})


# ---- formats ----


def test_conversations_with_and_without_a_prompt_column_give_the_same_samples(tokenizer):
    rows = tiny.preferences()
    expected = tiny.samples(tokenizer)
    for form in (rows, implicit(rows)):
        dataset = datasets.Dataset.from_list(form)
        samples, report = tokenize_preferences(dataset, tokenizer, **OPTIONS, template="brief")
        assert samples == expected and report.samples == len(rows)


@pytest.mark.parametrize("form", [list, plain], ids=["conversation", "plain"])
def test_ids_of_the_plain_template_are_those_of_trls_own_trainer(tokenizer, model, tmp_path, form):
    rows = form(tiny.preferences())
    samples, _ = tokenize_preferences(rows, tokenizer, objectives=["overall"], template="plain")
    config = trl.DPOConfig(str(tmp_path), use_cpu=True, bf16=False, report_to="none", gradient_checkpointing=False)
    theirs = trl.DPOTrainer(
        model, copy.deepcopy(model), config, train_dataset=datasets.Dataset.from_list(rows), processing_class=tokenizer
    ).train_dataset
    for sample, row in zip(samples, theirs, strict=True):
        assert sample.prompts[0] == row["prompt_ids"]
        assert (sample.chosen, sample.rejected) == (row["chosen_ids"], row["rejected_ids"])


def test_plain_strings_carry_the_template_as_text_and_end_with_eos(tokenizer):
    row = plain(tiny.preferences())[0]
    samples, _ = tokenize_preferences([row], tokenizer, **OPTIONS, template="brief")
    texts = [tokenizer.decode(prompt) for prompt in samples[0].prompts]
    assert texts == [f"helpfulness 3/4\n\n{row['prompt']}", f"brevity 4/4\n\n{row['prompt']}"]
    assert tokenizer.decode(samples[0].chosen) == row["chosen"] + tokenizer.eos_token


def test_rows_without_scores_serve_the_plain_template_alone(tokenizer):
    row = {key: value for key, value in tiny.preferences()[0].items() if not key.endswith("_scores")}
    samples, _ = tokenize_preferences([row], tokenizer, objectives=["mine"], template="plain")
    assert samples[0].num_objectives == 1
    with pytest.raises(DataError, match=r"dataset\[0\]: there is no column 'chosen_scores'.*template='plain'"):
        tokenize_preferences([row], tokenizer, **OPTIONS)


def test_a_scale_is_needed_where_a_score_is_shown_also_for_a_known_name(tokenizer):
    with pytest.raises(DataError, match="scale of objective 'helpfulness' is not known"):
        tokenize_preferences(tiny.preferences(), tokenizer, objectives=["helpfulness"], template="brief")
    # plain shows none, so scores on any scale do
    rows = [changed(chosen_scores={"helpfulness": 97}, rejected_scores={"helpfulness": -3})]
    samples, _ = tokenize_preferences(rows, tokenizer, objectives=["helpfulness"], template="plain")
    assert samples[0].num_objectives == 1


def changed(**changes):
    return {**tiny.preferences()[0], **changes}


BAD_ROWS = {
    "no rejected": ({"chosen": "x"}, "has no column 'rejected'"),
    "tools": (changed(tools=[{"name": "f"}]), "the column 'tools', which is not supported"),
    "two messages": (changed(chosen=tiny.preferences()[0]["chosen"] * 2), "'chosen' must be one assistant message"),
    "a user's answer": (changed(chosen=[{"role": "user", "content": "x"}]), "'chosen' must be one assistant message"),
    "mixed": (changed(chosen="x"), "'chosen' must be a list with one assistant message"),
    "a missing score": (changed(chosen_scores={"brevity": 1.0, "helpfulness": None}), "None for objective 'helpful"),
    "beyond the scale": (
        changed(chosen_scores={"brevity": 5, "helpfulness": 1}),
        "5 for objective 'brevity' is outside",
    ),
    "scores as a list": (changed(chosen_scores=[1, 2]), "'chosen_scores' must map each objective"),
    "special text": (changed(prompt=[{"role": "user", "content": "<|end|>"}]), "reads as a special token"),
}


@pytest.mark.parametrize("name", BAD_ROWS)
def test_a_row_that_cannot_be_used_is_named(tokenizer, name):
    row, message = BAD_ROWS[name]
    with pytest.raises(DataError, match=message):
        tokenize_preferences([row], tokenizer, **OPTIONS)


def test_datasets_that_cannot_be_planned_are_refused(tokenizer):
    rows = tiny.preferences()
    with pytest.raises(TypeError, match="got IterableDataset.*Dataset.from_list"):
        tokenize_preferences(datasets.Dataset.from_list(rows).to_iterable_dataset(), tokenizer, **OPTIONS)
    with pytest.raises(DataError, match="mixes plain strings and conversations"):
        tokenize_preferences([rows[0], plain(rows)[1]], tokenizer, **OPTIONS)
    with pytest.raises(DataError, match="is empty"):
        tokenize_preferences([], tokenizer, **OPTIONS)


# ---- training ----


def test_the_trainer_trains_a_saved_model_by_its_name_and_logs_trls_metrics(tokenizer, model, tmp_path):
    model.save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    rows = datasets.Dataset.from_list(tiny.preferences()).train_test_split(test_size=4, seed=0)
    trainer = AMoPOTrainer(
        str(tmp_path / "model"),
        settings(tmp_path / "run", max_steps=8, eval_strategy="steps", eval_steps=8),
        train_dataset=rows["train"],
        eval_dataset=rows["test"],
    )
    assert isinstance(trainer, amopo.AMoPOTrainer) and trainer.model.dtype == torch.float32
    trainer.train()
    found = logs(trainer)
    assert found[-1]["loss"] < found[0]["loss"] and found[-1]["rewards/margins"] > found[0]["rewards/margins"] + 0.3
    theirs = {"rewards/chosen", "rewards/rejected", "rewards/margins", "rewards/accuracies", "logps/chosen"}
    assert theirs | {"rewards/margins/brevity", "amopo/alpha/helpfulness"} <= set(found[-1])
    assert any("eval_rewards/margins/brevity" in entry for entry in trainer.state.log_history)
    other = trainer.evaluate(rows["test"])
    assert other["eval_loss"] == pytest.approx(trainer.evaluate()["eval_loss"], rel=1e-6)


def test_peft_config_trains_adapters_on_body_and_head(tokenizer, model, tmp_path):
    peft = pytest.importorskip("peft")
    config = peft.LoraConfig(r=4, target_modules=["q_proj", "lm_head"])
    before = tiny_runs.weights_of(model)
    rows = datasets.Dataset.from_list(tiny.preferences())
    given = {"train_dataset": rows, "processing_class": tokenizer}
    trainer = AMoPOTrainer(model, settings(tmp_path, max_steps=12), **given, peft_config=config)
    trainer.train()
    named = dict(trainer.model.named_parameters())
    trained = {name for name, p in named.items() if p.requires_grad}
    assert trained and all("lora_" in name for name in trained)
    for name, p in named.items():
        if "lora_B" in name:
            assert float(p.detach().abs().max()) > 0, f"{name} did not move"
        elif "lora_" not in name:
            assert p.equal(before[name.removeprefix("base_model.model.").replace("base_layer.", "")])
    assert logs(trainer)[-1]["rewards/margins"] > logs(trainer)[0]["rewards/margins"]
    with pytest.raises(ValueError, match="carries an adapter already"):
        AMoPOTrainer(trainer.model, settings(tmp_path), **given, peft_config=config)


def test_options_for_a_model_by_name_are_refused_for_a_loaded_one(tokenizer, model, tmp_path):
    rows = tiny.preferences()
    with pytest.raises(ValueError, match="args.model_init_kwargs is for a model given by its name"):
        AMoPOTrainer(
            model,
            settings(tmp_path, model_init_kwargs={"dtype": "bfloat16"}),
            train_dataset=rows,
            processing_class=tokenizer,
        )
    with pytest.raises(ValueError, match="processing_class is needed"):
        AMoPOTrainer(model, settings(tmp_path), train_dataset=rows)
    with pytest.raises(TypeError, match="must be an amopo.integrations.trl.AMoPOConfig"):
        AMoPOTrainer(model, tiny_runs.config(tmp_path), train_dataset=rows, processing_class=tokenizer)


def test_the_script_takes_its_flags_and_a_file_as_trls_do(tmp_path, monkeypatch):
    import trl_train

    file = tmp_path / "run.yaml"
    file.write_text("learning_rate: 1.0e-2\nscales: helpfulness=0:4,brevity=0:4\ntemplate: brief\n")
    words = f"--config {file} --output_dir {tmp_path}/run --objectives helpfulness brevity --max_steps 2"
    words += " --use_cpu --use_peft --lora_r 4 --lora_dropout 0 --logging_steps 1 --report_to none"
    words += " --lora_target_modules q_proj lm_head"
    monkeypatch.setattr(sys, "argv", ["trl_train.py", *words.split()])
    parser = trl.TrlParser((trl.ScriptArguments, AMoPOConfig, trl.ModelConfig))
    trainer = trl_train.main(*parser.parse_args_and_config())
    assert trainer.args.learning_rate == 1e-2 and trainer.args.template == "brief"
    assert len(logs(trainer)) == 2 and (tmp_path / "run" / "adapter_model.safetensors").exists()


# ---- TRL's losses ----


def gradients(model):
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def assert_same_gradients(got, expected):
    assert got.keys() == expected.keys()
    for name in expected:
        error = (got[name] - expected[name]).norm() / (expected[name].norm() + 1e-12)
        assert error < 1e-5, (name, float(error))


@pytest.mark.parametrize("gamma", [0.0, 0.5])
def test_simpo_is_that_of_trls_cpo_trainer(tokenizer, model, tmp_path, gamma):
    cpo = pytest.importorskip("trl.experimental.cpo")
    beta = 2.0
    config = cpo.CPOConfig(
        str(tmp_path), loss_type="simpo", cpo_alpha=0.0, simpo_gamma=gamma, beta=beta, use_cpu=True, bf16=False,
        report_to="none", per_device_train_batch_size=4, max_length=256, gradient_checkpointing=False,
        disable_dropout=True,
    )  # fmt: skip
    rows = datasets.Dataset.from_list(plain(tiny.preferences()))
    trainer = cpo.CPOTrainer(model, config, train_dataset=rows, processing_class=tokenizer)
    batch = next(iter(trainer.get_train_dataloader()))
    loss, metrics = trainer.get_batch_loss_metrics(trainer.model, batch)
    loss.backward()
    expected = gradients(model)
    model.zero_grad()

    both = trainer.concatenated_inputs(batch, padding_value=trainer.pad_token_id)
    ids, mask, labels = (both[f"concatenated_{name}"] for name in ("input_ids", "attention_mask", "labels"))
    with amopo.patch(model):
        logps = model(input_ids=ids, attention_mask=mask, labels=labels)
        result = amopo.loss_from_logps(
            logps, labels=labels, num_objectives=1, order="chosen_first", objective="simpo", beta=beta, gamma=gamma
        )
    result.loss.backward()
    torch.testing.assert_close(result.loss, loss, rtol=1e-5, atol=1e-6)
    assert_same_gradients(gradients(model), expected)
    for name in ("rewards/chosen", "rewards/rejected", "rewards/margins", "rewards/accuracies"):
        assert float(result.metrics[name]) == pytest.approx(metrics[name], rel=1e-5), name


@pytest.mark.parametrize("source", ["trl's fused head", "amopo.patch"])
def test_dpo_is_trls_sigmoid_loss_from_either_head(tokenizer, model, tmp_path, source):
    reference = tiny_runs.qwen2(1, vocab_size=len(tokenizer), max_position_embeddings=512)
    config = trl.DPOConfig(
        str(tmp_path), loss_type="sigmoid", beta=0.1, use_cpu=True, bf16=False, report_to="none",
        per_device_train_batch_size=4, gradient_checkpointing=False,
    )  # fmt: skip
    rows = datasets.Dataset.from_list(tiny.preferences())
    trainer = trl.DPOTrainer(model, reference, config, train_dataset=rows, processing_class=tokenizer)
    batch = next(iter(trainer.get_train_dataloader()))
    loss = trainer.compute_loss(model, batch)
    loss.backward()
    expected = gradients(model)
    model.zero_grad()

    labels = batch["input_ids"].masked_fill(batch["completion_mask"] == 0, -100)
    inputs = {"input_ids": batch["input_ids"], "attention_mask": batch["attention_mask"], "labels": labels}
    shape = {"labels": labels, "num_objectives": 1, "order": "chosen_first"}
    with torch.no_grad():
        logps = reference(**inputs, fused_lm_head=True).log_probs
        sums = amopo.loss_from_logps(logps, **shape).sum_logps
    if source == "amopo.patch":
        del model.forward  # TRL's
        amopo.patch(model)
        logps = model(**inputs)
    else:
        logps = model(**inputs, fused_lm_head=True).log_probs
    result = amopo.loss_from_logps(logps, **shape, objective=dpo(sums), weights="uniform", beta=0.1)
    result.loss.backward()
    torch.testing.assert_close(result.loss, loss, rtol=1e-5, atol=1e-6)
    assert_same_gradients(gradients(model), expected)


def test_a_reference_of_another_batch_is_refused():
    labels = torch.tensor([[-100, 3], [-100, 4]])
    with pytest.raises(ValueError, match=r"reference log-probs are \(2, 1, 2\), but the batch's \(1, 1, 2\)"):
        amopo.loss_from_logps(torch.zeros(2, 2), labels=labels, num_objectives=1, objective=dpo(torch.zeros(2, 1, 2)))


def test_the_mixin_trains_on_trls_log_probs_as_on_its_own(tokenizer, model, tmp_path):
    """The recipe of examples/trl_fused_head.py, against the patched model."""
    from trl_fused_head import FusedHeadTrainer

    class Patched(AMoPOMixin, Trainer):
        pass

    collator = PreferenceCollator(tokenizer, tiny.OBJECTIVES, scales=tiny.SCALES, template="brief", packed=False)
    rows = datasets.Dataset.from_list(tiny.preferences()[:4])
    models, found = [], []
    for trainer_class in (FusedHeadTrainer, Patched):
        mine = copy.deepcopy(model)
        if trainer_class is FusedHeadTrainer:
            trl.trainer.utils.add_fused_lm_head(mine)
        trainer = trainer_class(
            mine,
            arguments(tmp_path, num_train_epochs=3),
            train_dataset=rows,
            data_collator=collator,
            amopo=PreferenceLoss(objectives=tiny.OBJECTIVES),
        )
        trainer.train()
        models.append(mine)
        found.append([entry["loss"] for entry in logs(trainer)])
    assert found[0] == pytest.approx(found[1], rel=1e-5) and found[0][-1] < found[0][0]
    assert difference(*models) < 1e-5


@pytest.mark.parametrize("splits", [["train"], ["train", "test"]])
def test_the_script_needs_a_test_split_only_to_evaluate(splits, tmp_path):
    import trl_train

    data = tmp_path / "data"
    data.mkdir()
    for split in splits:
        datasets.Dataset.from_list(tiny.preferences()[:4]).to_json(data / f"{split}.jsonl")
    flags = (
        f"--dataset_name {data} --output_dir {tmp_path / 'out'} --objectives helpfulness brevity --template brief "
        "--scales helpfulness=0:4,brevity=0:4 --max_steps 2 --logging_steps 1 --use_cpu --report_to none"
    ).split()

    def run(*more):
        parser = trl.TrlParser((trl.ScriptArguments, AMoPOConfig, trl.ModelConfig))
        parsed = parser.parse_args_and_config([*flags, *more])
        return trl_train.main(*parsed).state.log_history

    assert not [entry for entry in run() if "eval_loss" in entry]
    evaluating = ["--eval_strategy", "steps", "--eval_steps", "2"]
    if "test" in splits:
        assert [entry["step"] for entry in run(*evaluating) if "eval_loss" in entry] == [2]
    else:
        with pytest.raises(KeyError, match="test"):
            run(*evaluating)
