"""What cannot be trained is refused before training, by name."""

import pytest
import short_runs
import tiny_runs
from torch import nn

from amopo.trainer import AMoPOTrainer


def test_what_cannot_train_is_refused_before_training(tmp_path, monkeypatch):
    config, samples = tiny_runs.config(tmp_path), tiny_runs.samples(3)
    with pytest.raises(ValueError, match="train_dataset is empty"):
        AMoPOTrainer(tiny_runs.qwen2(), config, train_dataset=[])
    with pytest.raises(ValueError, match="has 3 prompts, but there are 2 objectives"):
        AMoPOTrainer(tiny_runs.qwen2(), config, train_dataset=tiny_runs.samples(2, num_objectives=3))
    with pytest.raises(ValueError, match=r"eval_dataset\['x'\]: sample 's0' takes .* more than tokens_per_batch"):
        small = tiny_runs.config(tmp_path, tokens_per_batch=10)
        AMoPOTrainer(tiny_runs.qwen2(), small, eval_dataset={"x": samples})
    with pytest.raises(ValueError, match="vocabulary has 20 entries"):
        AMoPOTrainer(tiny_runs.qwen2(vocab_size=20), config, train_dataset=samples)
    with pytest.raises(ValueError, match="no output embeddings"):
        AMoPOTrainer(tiny_runs.qwen2().model, config, train_dataset=samples)
    with pytest.raises(ValueError, match="nn.DataParallel cannot run packed rows"):
        AMoPOTrainer(nn.DataParallel(tiny_runs.qwen2()), config, train_dataset=samples)
    with pytest.raises(ValueError, match="rope_type='dynamic'"):
        rope = {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 1e4}
        AMoPOTrainer(tiny_runs.llama(rope_parameters=rope), config, train_dataset=samples)
    with pytest.raises(TypeError, match="model must be a loaded causal LM, got str"):
        AMoPOTrainer("some/model", config, train_dataset=samples)
    with pytest.raises(TypeError, match="args must be an AMoPOConfig, got dict"):
        AMoPOTrainer(tiny_runs.qwen2(), {}, train_dataset=samples)
    with pytest.raises(ValueError, match="training needs a train_dataset"):
        AMoPOTrainer(tiny_runs.qwen2(), config, eval_dataset=samples).train()
    with pytest.raises(ValueError, match="evaluation needs an eval_dataset"):
        AMoPOTrainer(tiny_runs.qwen2(), config, train_dataset=samples).evaluate()
    monkeypatch.setattr(type(config), "n_gpu", 2)
    with pytest.raises(ValueError, match="2 GPUs are visible to one process"):
        AMoPOTrainer(tiny_runs.qwen2(), config, train_dataset=samples)


@pytest.mark.parametrize("kind", ["tensor", "context", "sequence"])
def test_parallelism_within_a_sample_is_refused(kind, tmp_path, monkeypatch):
    name = {"tensor": "get_tp_size", "context": "get_cp_size", "sequence": "get_sp_size"}[kind]
    monkeypatch.setattr(AMoPOTrainer, name, lambda self: 2)
    with pytest.raises(ValueError, match=rf"does not support {kind} parallelism \(size 2\); use data parallelism"):
        AMoPOTrainer(tiny_runs.qwen2(), tiny_runs.config(tmp_path), train_dataset=tiny_runs.samples(3))


def test_a_leaking_model_is_found_at_the_start(tmp_path):
    model = tiny_runs.qwen2()
    plain = model.model.forward
    model.model.forward = lambda position_ids=None, **kwargs: plain(**kwargs)  # loses the position ids
    with pytest.raises(ValueError, match="in a packed row differ from those of the sequence alone"):
        AMoPOTrainer(model, tiny_runs.config(tmp_path), train_dataset=tiny_runs.samples(3))


def test_attention_dropout_is_refused_before_training(tmp_path):
    with pytest.raises(
        ValueError, match="model.config.attention_dropout is 0.1; load the model with attention_dropout=0.0"
    ):
        AMoPOTrainer(tiny_runs.qwen2(attention_dropout=0.1), tiny_runs.config(tmp_path))


def test_a_self_check_that_fails_stops_the_run(tmp_path):
    model = tiny_runs.qwen2()
    trainer = AMoPOTrainer(model, tiny_runs.config(tmp_path, self_check=True), train_dataset=tiny_runs.samples(4))
    plain = model.model.layers[0].mlp.forward
    model.model.layers[0].mlp.forward = lambda x: plain(x) + 0.1 * x.roll(1, dims=1)  # after the checks of the start
    with pytest.raises(RuntimeError, match="self_check: a packed row is not what separate forwards give"):
        trainer.train()


def test_a_model_without_trainable_parameters_is_refused(tmp_path):
    with pytest.raises(ValueError, match="no parameter of the model requires a gradient"):
        short_runs.train(tmp_path, tiny_runs.samples(4), model=tiny_runs.qwen2().requires_grad_(False))
