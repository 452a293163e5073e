"""axolotl's plugin manager loads the plugin; its data, collator and trainer are AMoPO's, on `AxolotlTrainer`."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest

pytest.importorskip("axolotl.core.trainers.base", reason="axolotl is not installed here; run make test-axolotl")

import torch  # noqa: E402
import transformers  # noqa: E402
from axolotl.core.trainers.base import AxolotlTrainer  # noqa: E402
from axolotl.core.training_args import AxolotlTrainingArguments  # noqa: E402
from axolotl.integrations.base import BasePlugin, PluginManager, load_plugin  # noqa: E402
from axolotl.utils.dict import DictDefault  # noqa: E402
from micro_batches_seen import check_reductions  # noqa: E402

from amopo import fused_loss  # noqa: E402
from amopo.data.verifiable import generate_tasks, write_grouped_jsonl  # noqa: E402
from amopo.integrations.axolotl import (  # noqa: E402
    AMoPOArgs,
    AMoPOCollator,
    AMoPOPlugin,
    Settings,
    settings_of,
    tokenized_rows,
    trainer_class,
)
from amopo.trainer.scratch import build_model, train_tokenizer  # noqa: E402

NAME = "amopo.integrations.axolotl.AMoPOPlugin"
OBJECTIVES = ["helpfulness", "correctness"]


@pytest.fixture(scope="module")
def preferences(tmp_path_factory):
    path = tmp_path_factory.mktemp("data") / "preferences.jsonl"
    write_grouped_jsonl(path, generate_tasks(30, seed=0), seed=0)
    return path


@pytest.fixture(scope="module")
def tokenizer(preferences):
    texts = [r["text"] for line in preferences.read_text().splitlines() for r in json.loads(line)["responses"]]
    return train_tokenizer(texts, vocab_size=500)


@pytest.fixture
def cfg(preferences):
    return DictDefault(
        {
            "plugins": [NAME],
            "datasets": [{"path": str(preferences), "type": "amopo"}],
            "amopo_objectives": OBJECTIVES,
            "amopo_template": "brief",
        }
    )


def test_the_plugin_manager_takes_the_plugin(cfg, monkeypatch):
    monkeypatch.setattr(PluginManager, "_instance", None)
    manager = PluginManager.get_instance()
    manager.register(NAME)
    plugin = manager.plugins[NAME]
    assert isinstance(plugin, AMoPOPlugin) and isinstance(load_plugin(NAME), BasePlugin)
    assert manager.get_input_args() == ["amopo.integrations.axolotl.AMoPOArgs"]
    collator, options = manager.get_collator_cls_and_kwargs(cfg)
    assert collator is AMoPOCollator and options == {"num_objectives": 2}
    assert manager.get_training_args(cfg) == {"remove_unused_columns": False}
    found = manager.get_trainer_cls(DictDefault({**cfg, "amopo_beta": 2}))
    assert issubclass(found, AxolotlTrainer) and found.amopo == Settings(tuple(OBJECTIVES), beta=2.0)


def test_every_hook_has_the_arguments_of_the_base_class():
    import inspect

    hooks = [name for name in vars(AMoPOPlugin) if not name.startswith("_")]
    assert "get_trainer_cls" in hooks and "load_datasets" in hooks
    for name in hooks:
        ours, theirs = (inspect.signature(getattr(cls, name)).parameters for cls in (AMoPOPlugin, BasePlugin))
        assert list(ours) == list(theirs), name


def test_the_keys_of_the_yaml_are_the_fields_that_are_read(cfg):
    assert set(AMoPOArgs.model_fields) == {name for name in AMoPOArgs.model_fields if name.startswith("amopo_")}
    settings = settings_of(DictDefault({**cfg, "amopo_weights": [1, 3], "amopo_beta": 2, "amopo_pooled": "sum"}))
    assert settings == Settings(("helpfulness", "correctness"), 2.0, 0.0, (1.0, 3.0), "sum")
    defaults = AMoPOArgs(amopo_objectives=OBJECTIVES)
    assert settings_of(DictDefault(defaults.model_dump(exclude_none=True))) == Settings(tuple(OBJECTIVES))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"rl": "simpo"}, "rl cannot be set with AMoPOPlugin"),
        ({"sample_packing": True}, "sample_packing"),
        ({"context_parallel_size": 2}, "context_parallel_size"),
        ({"amopo_objectives": None}, "needs amopo_objectives"),
        ({"amopo_weights": [1.0]}, "1 numbers for 2 objectives"),
        ({"amopo_beta": -1.0}, "beta must be a positive number"),
    ],
)
def test_configurations_that_cannot_be_right_are_named(cfg, changes, message):
    with pytest.raises(ValueError, match=message):
        settings_of(DictDefault({**cfg, **changes}))


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        (None, "needs datasets"),
        ([{"path": "a"}, {"path": "b"}], "one entry in datasets, got 2"),
        ([{"path": "a", "type": "alpaca"}], "type: amopo"),
    ],
)
def test_datasets_that_are_not_preferences_are_named(cfg, tokenizer, entries, message):
    with pytest.raises(ValueError, match=message):
        tokenized_rows(DictDefault({**cfg, "datasets": entries}), tokenizer)


def test_rows_and_batches_hold_k_prompts_per_sample(cfg, tokenizer):
    train, held_out = tokenized_rows(DictDefault({**cfg, "val_set_size": 0.2}), tokenizer)
    assert len(held_out) >= 1 and len(train) > len(held_out)
    texts = [tokenizer.decode(ids) for ids in train[0]["prompts"]]
    assert "helpfulness" in texts[0] and "correctness" in texts[1]
    batch = AMoPOCollator(tokenizer, num_objectives=2, pad_to_multiple_of=8, padding=True)(train[:3])
    assert batch["input_ids"].shape[0] == 12 and batch["input_ids"].shape[1] % 8 == 0
    rows = [(s, k, side) for s in train[:3] for k in range(2) for side in ("chosen", "rejected")]
    for row, (sample, objective, side) in enumerate(rows):
        expected = sample["prompts"][objective] + sample[side]
        assert batch["input_ids"][row][batch["attention_mask"][row] == 1].tolist() == expected
        assert batch["labels"][row][batch["labels"][row] != -100].tolist() == sample[side]
    with pytest.raises(ValueError, match="2 prompts, but there are 3 objectives"):
        AMoPOCollator(tokenizer, num_objectives=3)(train[:1])


def make_trainer(tokenizer, folder, rows, held_out=None, **changes):
    settings = {
        "output_dir": str(folder), "per_device_train_batch_size": 2, "gradient_accumulation_steps": 2, "max_steps": 3,
        "learning_rate": 2e-3, "logging_steps": 1, "lr_scheduler_type": "constant", "save_strategy": "no",
        "use_cpu": True, "report_to": "none", "disable_tqdm": True, "remove_unused_columns": False, "seed": 5,
    }  # fmt: skip
    from datasets import Dataset

    collator = AMoPOCollator(tokenizer, num_objectives=2)
    return trainer_class(AxolotlTrainer, Settings(tuple(OBJECTIVES), beta=2.0))(
        model=build_model("nano", tokenizer),
        args=AxolotlTrainingArguments(**{**settings, **changes}),
        data_collator=collator,
        train_dataset=Dataset.from_list(rows),
        eval_dataset=None if held_out is None else Dataset.from_list(held_out),
        processing_class=tokenizer,
        eval_data_collator=collator,
    )


def test_the_trainer_trains_evaluates_and_logs(cfg, tokenizer, tmp_path):
    train, held_out = tokenized_rows(DictDefault({**cfg, "val_set_size": 0.2}), tokenizer)
    trainer = make_trainer(tokenizer, tmp_path, train[:4], held_out[:3], max_steps=8)
    trainer.train()
    steps = [entry for entry in trainer.state.log_history if "loss" in entry]
    assert len(steps) == 8
    for entry in steps:
        assert sum(entry[f"amopo/alpha/{d}"] for d in OBJECTIVES) == pytest.approx(1.0, abs=1e-4)
        assert entry["logps/chosen"] < 0 and math.isfinite(entry["loss"]) and entry["grad_norm"] > 0
    assert steps[-1]["rewards/margins"] > steps[0]["rewards/margins"] + 0.5
    first, second = trainer.evaluate(), trainer.evaluate()
    assert first["eval_loss"] == second["eval_loss"] and 0 <= first["eval_rewards/accuracies/correctness"] <= 1


def test_loss_and_gradients_are_those_of_fused_loss(cfg, tokenizer, tmp_path):
    train, _ = tokenized_rows(cfg, tokenizer)
    trainer = make_trainer(tokenizer, tmp_path, train)
    batch = trainer.data_collator(train[:2])
    loss = trainer.compute_loss(trainer.model, dict(batch))
    loss.backward()
    other = build_model("nano", tokenizer)
    hidden = other.model(batch["input_ids"], attention_mask=batch["attention_mask"]).last_hidden_state
    ids = batch["amopo_sample_ids"]
    expected = fused_loss(
        hidden, other.lm_head, batch["labels"], num_objectives=2, order="sample_major", beta=2.0, sample_ids=ids,
        seed=5, step=0,
    )  # fmt: skip
    expected.loss.backward()
    assert loss.item() == pytest.approx(expected.loss.item(), rel=1e-6)
    theirs = dict(other.named_parameters())
    for name, parameter in trainer.model.named_parameters():
        assert torch.allclose(parameter.grad, theirs[name].grad, atol=1e-5), name


def test_accumulated_micro_batches_give_the_step_of_one_batch(cfg, tokenizer, tmp_path):
    train, _ = tokenized_rows(cfg, tokenizer)
    weights = []
    for size, accumulation in ((4, 1), (1, 4)):
        trainer = make_trainer(
            tokenizer, tmp_path / str(size), train[:4], max_steps=1, per_device_train_batch_size=size,
            gradient_accumulation_steps=accumulation, optim="sgd", max_grad_norm=0.0,
        )  # fmt: skip
        trainer.train()
        weights.append({n: p.detach().clone() for n, p in trainer.model.named_parameters()})
    start = dict(build_model("nano", tokenizer).named_parameters())
    for name, value in weights[0].items():
        assert torch.allclose(value, weights[1][name], atol=1e-6), name
    assert max((weights[0][n] - start[n]).abs().max() for n in start) > 1e-4


def test_gradients_are_reduced_in_every_micro_batch_under_fsdp2(cfg, tokenizer, tmp_path, monkeypatch):
    """transformers has told FSDP2 not to, by the time it calls `training_step`."""
    train, _ = tokenized_rows(cfg, tokenizer)
    trainer = make_trainer(tokenizer, tmp_path, train[:4])
    check_reductions(trainer, monkeypatch, switched=[True])


def test_another_engine_than_one_of_data_parallelism_is_refused(cfg, tokenizer, tmp_path, monkeypatch):
    monkeypatch.setattr(transformers.Trainer, "get_tp_size", lambda self: 2)
    train, _ = tokenized_rows(cfg, tokenizer)
    with pytest.raises(ValueError, match=r"does not support tensor parallelism \(size 2\); use data parallelism"):
        make_trainer(tokenizer, tmp_path, train[:4])


def test_the_example_names_this_plugin():
    import yaml

    example = Path(__file__).resolve().parents[3] / "examples" / "axolotl" / "amopo.yaml"
    settings = yaml.safe_load(example.read_text())
    assert settings["plugins"] == [NAME]
    assert settings_of(DictDefault(settings)).objectives == ("helpfulness", "correctness")
    unknown = [k for k in settings if k.startswith("amopo_") and k not in AMoPOArgs.model_fields]
    assert not unknown
