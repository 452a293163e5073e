"""Settings that cannot work raise before anything is loaded, and say what to do."""

import dataclasses
import os

import pytest

from amopo.trainer import AMoPOConfig


def make(tmp_path, **changes):
    settings = {"objectives": ["a", "b"], "output_dir": str(tmp_path / "run"), "use_cpu": True}
    return AMoPOConfig(**{**settings, **changes})


def test_defaults_are_those_of_the_documentation(tmp_path):
    config = make(tmp_path, seed=11)
    assert (config.beta, config.gamma, config.weights, config.pooled) == (0.8, 0.0, "gaussian", "union")
    assert (config.objective, config.sharing, config.learning_rate) == ("amopo", "pair", 1e-6)
    assert config.noise_seed == 11
    assert config.report_to == []
    assert config.num_objectives == 2
    assert not config.logging_nan_inf_filter
    assert not (tmp_path / "run").exists(), "checking must not create the directory"


def test_a_config_can_be_changed_and_rebuilt(tmp_path):
    config = make(tmp_path, weights="fixed", objective_weights=[1.0, 3.0])
    assert dataclasses.replace(config, beta=2.0).beta == 2.0
    assert config.to_dict()["objective_weights"] == [1.0, 3.0]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"objectives": []}, r"objectives is empty \(K = 0\)"),
        ({"objectives": ["a", " "]}, "objectives contains an empty name"),
        ({"objectives": ["a", "b", "a"]}, "objectives repeats a; name each objective once"),
        ({"beta": 0.0}, "beta must be positive and finite, got 0.0"),
        ({"beta": -1.0}, "beta must be positive and finite, got -1.0"),
        ({"beta": float("nan")}, "beta must be positive and finite, got nan"),
        ({"gamma": float("inf")}, "gamma must be finite"),
        ({"objective": "ppo"}, "unknown objective 'ppo'; known: amopo"),
        ({"weights": "gauss"}, "weights='gauss' is not known; known: gaussian, mean, uniform, fixed"),
        ({"weights": "fixed"}, r"needs objective_weights with one number per objective \(2: a, b\), got None"),
        ({"weights": "fixed", "objective_weights": [1.0]}, "one number per objective"),
        ({"weights": "fixed", "objective_weights": [1.0, -1.0]}, "must be finite, not negative and not all zero"),
        ({"weights": "fixed", "objective_weights": [0.0, 0.0]}, "must be finite, not negative and not all zero"),
        ({"objective_weights": [1.0, 1.0]}, "objective_weights has no effect with weights='gaussian'"),
        ({"pooled": "mean"}, "pooled='mean' is not known; known: union, sum"),
        ({"preset": "official"}, "preset='official' weights a sample by the others in its micro-batch"),
        ({"preset": "other"}, "preset='other' is not known"),
        ({"logits_dtype": "fp8"}, "logits_dtype='fp8' is not known; known: None, float32, input"),
        ({"noise_seed": -1}, "noise_seed must be between 0"),
        ({"sharing": "all"}, "sharing='all' is not known; known: 'none', 'pair', 'tree'"),
        ({"tokens_per_batch": 0}, "tokens_per_batch must be at least 1, got 0"),
        ({"tokens_per_batch": -5}, "tokens_per_batch must be at least 1, got -5"),
        ({"head_budget": -1}, "head_budget must be at least 1, got -1"),
        ({"max_samples_per_batch": 0}, "max_samples_per_batch must be at least 1"),
        ({"per_device_train_batch_size": 4}, "per_device_train_batch_size=4 has no meaning .* tokens_per_batch"),
        ({"label_smoothing_factor": 0.1}, "label_smoothing_factor=0.1 has no meaning"),
        ({"orientation": "each"}, "orientation='each' is not known; known: overall, per_objective"),
        ({"use_liger_kernel": True}, "use_liger_kernel=True has no meaning .* the head and the loss are already fused"),
        ({"torch_compile": True}, "torch_compile=True has no meaning"),
        ({"dataloader_drop_last": True}, "dataloader_drop_last=True has no meaning"),
        ({"learning_rate": -1e-6}, "learning_rate must be finite and not negative, got -1e-06"),
        ({"learning_rate": float("inf")}, "learning_rate must be finite"),
        ({"gradient_accumulation_steps": 0}, "gradient_accumulation_steps must be at least 1, got 0"),
        ({"max_steps": 0}, "max_steps=0 would be ignored"),
        ({"seed": -1}, "seed must be between 0 and 2.32 - 1, got -1"),
        ({"data_seed": 2**32}, "data_seed must be between 0"),
        ({"beta": "high"}, "beta must be a number, got 'high'"),
        ({"learning_rate": "fast"}, "learning_rate must be a number, got 'fast'"),
        ({"weights": "fixed", "objective_weights": ["a", 1.0]}, r"objective_weights\[0\] must be a number, got 'a'"),
        ({"num_train_epochs": 0}, "num_train_epochs=0 with max_steps=-1 trains nothing"),
        ({"num_train_epochs": -2.0}, "num_train_epochs=-2.0 with max_steps=-1 trains nothing"),
        ({"num_train_epochs": float("nan")}, "num_train_epochs=nan with max_steps=-1 trains nothing"),
        ({"fp16": True}, "fp16=True has no effect on a CPU"),
    ],
)
def test_values_that_cannot_work_are_named(tmp_path, changes, message):
    with pytest.raises(ValueError, match=message):
        make(tmp_path, **changes)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"objectives": "a,b"}, "objectives must be a list of names, got 'a,b'"),
        ({"tokens_per_batch": 10.5}, "tokens_per_batch must be an integer, got 10.5"),
        ({"objectives": None}, "objectives must be a list of names, got None"),
        ({"beta": [1.0]}, r"beta must be a number, got \[1.0\]"),
        ({"beta": None}, "beta must be a number, got None"),
        ({"noise_seed": 1.5}, "noise_seed must be an integer, got 1.5"),
        ({"max_steps": "many"}, "max_steps must be an integer, got 'many'"),
        ({"weights": "fixed", "objective_weights": 1.0}, "objective_weights must be a list of numbers, got 1.0"),
    ],
)
def test_values_of_the_wrong_type_are_named(tmp_path, changes, message):
    with pytest.raises(TypeError, match=message):
        make(tmp_path, **changes)


def test_an_output_directory_below_a_file_is_refused(tmp_path):
    (tmp_path / "file").write_text("not a directory")
    with pytest.raises(ValueError, match="output_dir .* is not writable: .*file' is not a directory"):
        make(tmp_path, output_dir=str(tmp_path / "file" / "run"))


def test_an_output_directory_without_permission_is_refused(tmp_path, monkeypatch):
    # asked of the system, not tried: the tests may run as root, who may write anywhere
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    with pytest.raises(ValueError, match="is not writable: no permission to write to"):
        make(tmp_path)


def test_numbers_may_be_written_as_text(tmp_path):
    config = make(
        tmp_path, learning_rate="1e-6", beta="1.0", weight_decay="0.1", weights="fixed", objective_weights=["1", "3"]
    )
    assert (config.learning_rate, config.beta, config.weight_decay) == (1e-6, 1.0, 0.1)
    assert config.objective_weights == [1.0, 3.0]


def test_steps_may_replace_epochs(tmp_path):
    assert make(tmp_path, num_train_epochs=0, max_steps=3).max_steps == 3
