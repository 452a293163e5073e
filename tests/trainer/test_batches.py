"""A dataset is checked once, by name, and becomes batches that follow the epoch."""

import pytest
import tiny_runs
import transformers

from amopo.packing import TokenizedSample, packed_length
from amopo.trainer import AMoPOTrainer
from amopo.trainer.batches import PackedLoader, plan_training
from amopo.trainer.checks import position_limit
from amopo.trainer.samples import Positions, read_samples


def read(samples, **changes):
    settings = {"name": "train_dataset", "num_objectives": 2, "tokens_per_batch": 200, "vocab_size": tiny_runs.VOCAB}
    return read_samples(samples, **{**settings, **changes})


def test_a_table_knows_lengths_and_fingerprint():
    samples = tiny_runs.samples(5)
    table = read(samples)
    assert table.lengths == [packed_length(s) for s in samples]
    assert table.names() == ["s0", "s1", "s2", "s3", "s4"]
    assert read(list(samples)).fingerprint == table.fingerprint


def test_the_fingerprint_sees_every_change():
    samples = tiny_runs.samples(3)
    first = samples[0]
    changed = [
        TokenizedSample(first.prompts, first.chosen, first.rejected, "other"),
        TokenizedSample(first.prompts, [*first.chosen, 5], first.rejected, first.id),
        TokenizedSample(first.prompts[::-1], first.chosen, first.rejected, first.id),
        TokenizedSample(first.prompts, first.rejected, first.chosen, first.id),
    ]
    prints = {read(samples).fingerprint, read(samples[::-1]).fingerprint, read(samples[:2]).fingerprint}
    prints |= {read([sample, *samples[1:]]).fingerprint for sample in changed}
    assert len(prints) == 7


@pytest.mark.parametrize(
    ("samples", "changes", "message"),
    [
        ([], {}, "train_dataset is empty"),
        (tiny_runs.samples(3), {"num_objectives": 3}, "sample 's0' has 2 prompts, but there are 3 objectives"),
        (tiny_runs.samples(3), {"tokens_per_batch": 10}, "sample 's0' takes .* more than tokens_per_batch=10"),
        (tiny_runs.samples(3), {"vocab_size": 10}, "has token id .* vocabulary has 10 entries"),
        (tiny_runs.samples(3), {"world_size": 4}, "train_dataset has 3 samples for 4 ranks"),
        (tiny_runs.samples(2) + tiny_runs.samples(1), {}, "sample id 's0' occurs twice"),
    ],
)
def test_what_cannot_train_is_named(samples, changes, message):
    with pytest.raises(ValueError, match=message):
        read(samples, **changes)


def test_wrong_types_are_named():
    with pytest.raises(TypeError, match=r"train_dataset\[1\] must be a TokenizedSample, got dict"):
        read([*tiny_runs.samples(1), {}])
    with pytest.raises(TypeError, match="train_dataset must be a list of TokenizedSample, got generator"):
        read(sample for sample in tiny_runs.samples(1))


def test_the_loader_yields_packed_rows_in_the_epochs_order():
    samples = tiny_runs.samples(20)
    table = read(samples)
    sampler = plan_training(table, num_train_epochs=2, max_steps=-1, gradient_accumulation_steps=1, budget=200, seed=3)
    loader = PackedLoader(table, sampler)
    orders = []
    for epoch in range(2):
        loader.set_epoch(epoch)
        batches = list(loader)
        assert len(batches) == len(loader)
        assert sum(batch["amopo_num_samples"] for batch in batches) == 20
        assert all(batch["input_ids"].shape[1] <= 200 for batch in batches)
        orders.append([tuple(batch["amopo_sample_ids"].tolist()) for batch in batches])
    assert orders[0] != orders[1]


def test_a_filler_counts_for_nothing():
    samples = tiny_runs.samples(3)
    table = read(samples, world_size=2)
    limits = {"budget": 200, "max_samples_per_batch": 1, "world_size": 2, "shuffle": False}
    counts = []
    for rank in range(2):
        sampler = plan_training(
            table, num_train_epochs=1, max_steps=-1, gradient_accumulation_steps=1, rank=rank, **limits
        )
        counts += [batch["amopo_num_samples"] for batch in PackedLoader(table, sampler)]
    assert sorted(counts) == [0, 1, 1, 1]


@pytest.mark.parametrize("accumulation", [1, 3])
@pytest.mark.parametrize("max_steps", [1, 7, 40])
def test_as_many_epochs_are_planned_as_the_steps_need(max_steps, accumulation):
    table = read(tiny_runs.samples(40))
    sampler = plan_training(
        table, num_train_epochs=3, max_steps=max_steps, gradient_accumulation_steps=accumulation, budget=200
    )
    steps_per_epoch = -(-len(sampler) // accumulation)
    assert sampler.num_epochs * steps_per_epoch >= max_steps


def test_a_fraction_of_an_epoch_is_planned_as_a_whole_one():
    table = read(tiny_runs.samples(10))
    options = {"max_steps": -1, "gradient_accumulation_steps": 1, "budget": 200}
    assert plan_training(table, num_train_epochs=1.5, **options).num_epochs == 2
    assert plan_training(table, num_train_epochs=0.2, **options).num_epochs == 1


def test_a_dictionary_of_datasets_is_not_one_dataset():
    with pytest.raises(TypeError, match="train_dataset must be a list .*, got a dict with the keys 'train'; pass one"):
        read({"train": tiny_runs.samples(2)})


def test_a_sequence_beyond_the_models_positions_is_named():
    sample = TokenizedSample([[5] * 4, [5] * 3], [6] * 7, [7] * 2, "long")
    read([sample], positions=Positions(11, is_table=True))
    with pytest.raises(ValueError, match="longest sequence of sample 'long' has 11 tokens, but the model has 10 pos"):
        read([sample], positions=Positions(10, is_table=True))


def test_rotary_positions_beyond_the_models_length_are_one_warning(caplog):
    samples = tiny_runs.samples(5)
    read(samples, positions=Positions(128))
    assert not caplog.records
    read(samples, positions=Positions(3))
    assert len(caplog.records) == 1
    assert "more than the 3 positions that the model was made for" in caplog.text


def test_the_number_of_positions_is_read_from_the_model():
    small = {"vocab_size": 64, "n_embd": 32, "n_layer": 1, "n_head": 4}
    gpt2 = transformers.GPT2LMHeadModel(transformers.GPT2Config(**small, n_positions=10))
    assert position_limit(gpt2) == Positions(10, is_table=True)
    gptj = transformers.GPTJForCausalLM(transformers.GPTJConfig(**small, n_positions=10, rotary_dim=4))
    assert position_limit(gptj) == Positions(10, is_table=True)
    opt = transformers.OPTConfig(
        vocab_size=64, hidden_size=32, ffn_dim=8, num_hidden_layers=1, num_attention_heads=4, max_position_embeddings=10
    )
    assert position_limit(transformers.OPTForCausalLM(opt)) == Positions(10, is_table=True)
    assert position_limit(tiny_runs.qwen2()) == Positions(128)


def test_the_trainer_refuses_what_the_position_table_does_not_hold(tmp_path):
    small = {"vocab_size": 64, "n_embd": 32, "n_layer": 1, "n_head": 4}
    gpt2 = transformers.GPT2LMHeadModel(transformers.GPT2Config(**small, n_positions=10, attn_pdrop=0.0))
    sample = TokenizedSample([[5] * 4, [5] * 3], [6] * 7, [7] * 2, "long")
    with pytest.raises(ValueError, match="train_dataset: the longest sequence of sample 'long' has 11 tokens"):
        AMoPOTrainer(gpt2, tiny_runs.config(tmp_path), train_dataset=[sample])
