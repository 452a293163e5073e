"""A killed run goes on as if nothing had happened; another run does not go on at all."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import resume_worker
import tiny_runs
import torch
from safetensors.torch import load_file

from amopo.trainer import AMoPOTrainer
from amopo.trainer.resume import check_same_run, latest_checkpoint, write_run_record

HERE = Path(__file__).parent
ROOT = HERE.parents[1]


def run_worker(*arguments):
    paths = [str(HERE), str(ROOT), str(ROOT / "kernels")]
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(paths), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(HERE / "resume_worker.py"), *map(str, arguments)]
    return subprocess.run(command, env=env, capture_output=True, text=True, timeout=800)


def test_a_run_killed_in_mid_epoch_ends_where_the_uninterrupted_one_does(tmp_path):
    torch.set_num_threads(1)  # as in the worker: sums in the same order
    whole = resume_worker.make(tmp_path / "whole")
    whole.train()
    steps_per_epoch = whole.state.max_steps // 2
    last_saved = resume_worker.SAVE_STEPS * (steps_per_epoch // resume_worker.SAVE_STEPS + 1)
    kill_at = last_saved + 2
    assert steps_per_epoch < last_saved < kill_at < whole.state.max_steps, "in the middle of the second epoch"

    broken = tmp_path / "broken"
    assert run_worker(broken, "kill", kill_at).returncode == -signal.SIGKILL
    assert latest_checkpoint(broken).name == f"checkpoint-{last_saved}"
    done = run_worker(broken, "resume")
    assert done.returncode == 0, done.stderr

    state = json.loads((broken / "trainer_state.json").read_text())
    losses = {e["step"]: e["loss"] for e in state["log_history"] if "loss" in e}
    expected = {e["step"]: e["loss"] for e in whole.state.log_history if "loss" in e}
    assert list(losses) == list(expected) == list(range(1, whole.state.max_steps + 1)), "the history is complete"
    assert losses == pytest.approx(expected, rel=0, abs=1e-6)
    resumed = load_file(broken / "final" / "model.safetensors")
    for name, value in whole.model.state_dict().items():
        if name in resumed:
            torch.testing.assert_close(resumed[name], value, rtol=0, atol=1e-6)


@pytest.fixture
def checkpoint(tmp_path):
    """A finished run of two steps with a checkpoint after the first."""
    settings = {"max_steps": 2, "save_strategy": "steps", "save_steps": 1, "tokens_per_batch": 200}
    config = tiny_runs.config(tmp_path / "run", **settings)
    AMoPOTrainer(tiny_runs.qwen2(), config, train_dataset=tiny_runs.samples(6)).train()
    return tmp_path / "run" / "checkpoint-1", settings


def test_the_run_is_written_down_with_every_checkpoint(checkpoint):
    path, _ = checkpoint
    record = json.loads((path / "amopo_run.json").read_text())
    assert record == json.loads((path.parent / "amopo_run.json").read_text())
    settings = record["settings"]
    assert settings["objectives"] == tiny_runs.OBJECTIVES
    assert (settings["beta"], settings["tokens_per_batch"], settings["num_samples"]) == (2.0, 200, 6)
    assert len(settings["data_fingerprint"]) == 32
    assert {"amopo", "torch", "transformers"} <= set(record["versions"])


def test_every_setting_that_differs_is_listed_with_both_values(checkpoint):
    path, settings = checkpoint
    changes = {
        "beta": 0.5,
        "gamma": 1.0,
        "weights": "uniform",
        "objectives": ["helpfulness", "other"],
        "tokens_per_batch": 300,
        "seed": 8,
        "gradient_accumulation_steps": 2,
        "learning_rate": 0.5,
    }
    config = tiny_runs.config(path.parent, **{**settings, **changes})
    trainer = AMoPOTrainer(tiny_runs.qwen2(), config, train_dataset=tiny_runs.samples(6, seed=3))
    with pytest.raises(ValueError, match="cannot resume from .*checkpoint-1.*, 10 settings differ") as error:
        trainer.train(resume_from_checkpoint=str(path))
    message = str(error.value)
    assert "beta: 2.0 in the checkpoint, 0.5 now" in message
    assert "objectives: ['helpfulness', 'brevity'] in the checkpoint, ['helpfulness', 'other'] now" in message
    for name in (*changes, "noise_seed", "data_fingerprint"):
        assert f"\n  {name}: " in message
    assert trainer.state.global_step == 0, "nothing was trained"


def test_settings_that_decide_nothing_may_change(checkpoint):
    path, settings = checkpoint
    config = tiny_runs.config(path.parent, **{**settings, "save_steps": 5, "logging_steps": 2, "head_budget": 10**7})
    trainer = AMoPOTrainer(tiny_runs.qwen2(), config, train_dataset=tiny_runs.samples(6))
    trainer.train(resume_from_checkpoint=str(path))
    assert trainer.state.global_step == 2


def test_a_checkpoint_that_was_not_finished_is_skipped(checkpoint):
    path, _ = checkpoint
    newest = path.parent / "checkpoint-2"
    assert latest_checkpoint(path.parent) == newest
    (newest / "trainer_state.json").write_text('{"global_step": 2, "log_hist')
    assert latest_checkpoint(path.parent) == path
    (path.parent / "checkpoint-10").mkdir()
    assert latest_checkpoint(path.parent) == path


def test_where_there_is_nothing_to_resume_the_message_says_so(tmp_path, checkpoint):
    path, settings = checkpoint
    with pytest.raises(ValueError, match="no complete checkpoint in .*nowhere"):
        latest_checkpoint(tmp_path / "nowhere")
    record = json.loads((path / "amopo_run.json").read_text())
    with pytest.raises(ValueError, match="checkpoint .*nowhere.* does not exist"):
        check_same_run(tmp_path / "nowhere", record)
    (path / "amopo_run.json").unlink()
    with pytest.raises(ValueError, match="amopo_run.json is missing or broken"):
        check_same_run(path, record)
    config = tiny_runs.config(tmp_path / "fresh", **settings)
    trainer = AMoPOTrainer(tiny_runs.qwen2(), config, train_dataset=tiny_runs.samples(6))
    with pytest.raises(ValueError, match="no complete checkpoint in .*fresh"):
        trainer.train(resume_from_checkpoint=True)


def test_other_versions_are_a_warning(checkpoint, caplog):
    path, _ = checkpoint
    record = json.loads((path / "amopo_run.json").read_text())
    write_run_record(path, {**record, "versions": {**record["versions"], "torch": "1.0"}})
    check_same_run(path, record)
    assert "a run of 1.0" in caplog.text


@pytest.mark.parametrize("name", ["optimizer.pt", "scheduler.pt", "rng_state.pth", "trainer_state.json"])
@pytest.mark.parametrize("damage", ["missing", "broken"])
def test_a_checkpoint_without_all_of_its_state_is_refused_by_name(checkpoint, name, damage):
    path, settings = checkpoint
    file = path.parent / "checkpoint-2" / name
    if damage == "missing":
        file.unlink()
    else:
        file.write_bytes(file.read_bytes()[:-40])
    config = tiny_runs.config(path.parent, **settings)
    trainer = AMoPOTrainer(tiny_runs.qwen2(), config, train_dataset=tiny_runs.samples(6))
    with pytest.raises(ValueError, match=f"cannot resume from .*checkpoint-2.*{name} is .*{damage}.*start a new run"):
        trainer.train(resume_from_checkpoint=str(file.parent))
    assert latest_checkpoint(path.parent) == path, "the one before is the newest that is complete"


@pytest.mark.parametrize("folders", [["global_step2"], ["optimizer_0", "pytorch_model_fsdp_0"]])
def test_sharded_optimizer_states_stand_in_for_the_file(checkpoint, folders):
    path, _ = checkpoint
    record = json.loads((path / "amopo_run.json").read_text())
    (path / "optimizer.pt").unlink()
    for folder in folders:
        (path / folder).mkdir()
    check_same_run(path, record)


def test_every_ranks_random_state_is_needed(checkpoint):
    path, _ = checkpoint
    record = json.loads((path / "amopo_run.json").read_text())
    record["settings"]["world_size"] = 2
    write_run_record(path, record)
    (path / "rng_state.pth").rename(path / "rng_state_1.pth")
    with pytest.raises(ValueError, match="rng_state_0.pth is missing"):
        check_same_run(path, record)
    check_same_run(path, record, rank=1)


@pytest.mark.parametrize("name", ["save_only_model", "ignore_data_skip"])
def test_options_that_would_train_something_else_must_agree(checkpoint, name):
    path, settings = checkpoint
    config = tiny_runs.config(path.parent, **settings, **{name: True})
    trainer = AMoPOTrainer(tiny_runs.qwen2(), config, train_dataset=tiny_runs.samples(6))
    with pytest.raises(ValueError, match=f"1 settings differ:\n  {name}: False in the checkpoint, True now"):
        trainer.train(resume_from_checkpoint=str(path))


def test_skipping_the_data_is_refused_also_where_it_agrees(checkpoint):
    path, _ = checkpoint
    record = json.loads((path / "amopo_run.json").read_text())
    record["settings"]["ignore_data_skip"] = True
    write_run_record(path, record)
    with pytest.raises(ValueError, match="with ignore_data_skip=True: it would train on other batches"):
        check_same_run(path, record)


def test_another_model_is_another_run(checkpoint):
    path, settings = checkpoint
    model = tiny_runs.qwen2(rms_norm_eps=1e-5, intermediate_size=40).double()
    model.get_input_embeddings().weight.requires_grad_(False)
    trainer = AMoPOTrainer(model, tiny_runs.config(path.parent, **settings), train_dataset=tiny_runs.samples(6))
    with pytest.raises(ValueError, match="cannot resume") as error:
        trainer.train(resume_from_checkpoint=str(path))
    message = str(error.value)
    assert "model.config.rms_norm_eps: 1e-06 in the checkpoint, 1e-05 now" in message
    assert "model.config.intermediate_size: 48 in the checkpoint, 40 now" in message
    for name in ("dtypes", "trainable_parameters", "trainable_names", "frozen_weights"):
        assert f"\n  model.{name}" in message


def test_options_that_only_one_version_knows_are_no_difference(checkpoint):
    path, _ = checkpoint
    record = json.loads((path / "amopo_run.json").read_text())
    newer = json.loads(json.dumps(record))
    newer["settings"]["model"]["config"]["new_option"] = 1
    with pytest.raises(ValueError, match="model.config.new_option: None in the checkpoint, 1 now"):
        check_same_run(path, newer)
    newer["versions"]["transformers"] = "99.0"
    check_same_run(path, newer)


def test_a_checkpoint_that_renames_a_weight_is_not_resumed_without_it(tmp_path):
    from transformers import GPTNeoXConfig, GPTNeoXForCausalLM

    sizes = {name: value for name, value in tiny_runs.SIZES.items() if name != "num_key_value_heads"}
    settings = {"max_steps": 2, "save_strategy": "steps", "save_steps": 1, "tokens_per_batch": 200}

    def trainer():
        model = GPTNeoXForCausalLM(GPTNeoXConfig(**sizes))
        config = tiny_runs.config(tmp_path / "run", **settings)
        return AMoPOTrainer(model, config, train_dataset=tiny_runs.samples(6))

    trainer().train()
    path = tmp_path / "run" / "checkpoint-1"
    if "lm_head.weight" in load_file(path / "model.safetensors"):
        pytest.skip("this transformers saves the weight under the model's own name")
    with pytest.raises(ValueError, match=r"holds no weight called 'lm_head.weight' .*'embed_out.weight'"):
        trainer().train(resume_from_checkpoint=str(path))
