"""Training from files gives what training from a list gives, and its table is read without the tokens."""

import logging
import random
import tracemalloc

import pytest
import tiny_runs
import torch

from amopo.packing import SampleWriter, TokenDataset, TokenizedSample
from amopo.trainer import AMoPOTrainer
from amopo.trainer.batches import plan_training
from amopo.trainer.samples import Positions, read_samples


def signed(count, signs=(1, -1)):
    return [
        TokenizedSample(s.prompts, s.chosen, s.rejected, s.id, signs if number % 3 == 2 else None)
        for number, s in enumerate(tiny_runs.samples(count))
    ]


@pytest.fixture
def store(tmp_path):
    def store(samples, name="stored"):
        with SampleWriter(tmp_path / name, num_objectives=2) as writer:
            for sample in samples:
                writer.add(sample)
            writer.close()
        return TokenDataset(tmp_path / name)

    return store


def read(samples, **changes):
    settings = {"name": "train_dataset", "num_objectives": 2, "tokens_per_batch": 200, "vocab_size": tiny_runs.VOCAB}
    return read_samples(samples, **{**settings, **changes})


@pytest.mark.parametrize("sharing", ["none", "pair", "tree"])
def test_the_table_is_that_of_a_list(store, sharing):
    samples = signed(9)
    options = {"sharing": sharing, "orientation": "per_objective"}
    listed, stored = read(samples, **options), read(store(samples), **options)
    assert list(stored.lengths) == listed.lengths and list(stored.rows) == listed.rows
    assert stored.fingerprint == listed.fingerprint and list(stored.names()) == listed.names()
    plans = [
        plan_training(table, num_train_epochs=2, max_steps=-1, gradient_accumulation_steps=1, budget=200).plan(1)
        for table in (listed, stored)
    ]
    assert plans[0] == plans[1]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_objectives": 3}, "sample 's0' has 2 prompts, but there are 3 objectives"),
        ({"tokens_per_batch": 10}, "sample 's.' takes .* more than tokens_per_batch=10"),
        ({"vocab_size": 10}, "sample 's.' has token id .* vocabulary has 10 entries"),
        ({"world_size": 7}, "train_dataset has 6 samples for 7 ranks"),
        ({"positions": Positions(3, is_table=True)}, "longest sequence of sample 's.' has .* has 3 positions"),
        ({"orientation": "overall"}, "sample 's2' has signs, .* set orientation='per_objective'"),
    ],
)
def test_what_cannot_train_is_named_from_either(store, changes, message):
    samples = signed(6)
    for dataset in (samples, store(samples)):
        with pytest.raises(ValueError, match=message):
            read(dataset, **{"orientation": "per_objective", **changes})


def test_signs_that_are_not_there_are_a_warning(store, caplog):
    samples = tiny_runs.samples(3)
    for dataset in (samples, store(samples)):
        caplog.clear()
        with caplog.at_level(logging.WARNING):
            read(dataset, orientation="per_objective")
        assert "no sample has a sign other than +1" in caplog.text


def test_memory_of_the_table_does_not_depend_on_the_tokens(store):
    rng = random.Random(1)

    def peak(length):
        made = (
            TokenizedSample([[5] * length, [6] * length], [7] * length, [*[8] * length, rng.randrange(9, 60)], number)
            for number in range(1_000)
        )
        stored = store(made, str(length))
        tracemalloc.start()
        read(stored, tokens_per_batch=10**6)
        found = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return found

    short, long = peak(2), peak(400)
    assert long < short + 20_000, "a list of such samples takes 12 MB"
    assert long < 100_000


def test_a_run_from_files_is_the_run_from_a_list(store, tmp_path):
    samples, evaluation = signed(8, signs=(-1, 0)), signed(4)[2:]
    runs = []
    for name, given in (("list", samples), ("files", store(samples))):
        args = tiny_runs.config(tmp_path / name, orientation="per_objective", dataloader_num_workers=0)
        trainer = AMoPOTrainer(tiny_runs.qwen2(), args, train_dataset=given, eval_dataset=evaluation)
        trainer.train()
        runs.append((tiny_runs.weights_of(trainer.model), trainer.evaluate()["eval_loss"], trainer.run_record()))
    for weight, other in zip(runs[0][0].values(), runs[1][0].values(), strict=True):
        assert torch.equal(weight, other)
    assert runs[0][1] == runs[1][1]
    records = [run[2]["settings"] for run in runs]
    assert records[0]["data_fingerprint"] == records[1]["data_fingerprint"]
    assert records[0]["orientation"] == "per_objective"
