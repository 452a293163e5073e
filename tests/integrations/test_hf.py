"""The mixin trains a plain transformers.Trainer by the same steps as our own trainer, packed or padded."""

import pytest
import tiny_runs
import torch
from hf_runs import arguments, difference, logs
from transformers import Trainer

from amopo import TokenizedSample
from amopo.integrations.hf import AMoPOMixin, PreferenceCollator, PreferenceLoss
from amopo.trainer import AMoPOTrainer


class MixedTrainer(AMoPOMixin, Trainer):
    pass


PACKED = PreferenceCollator()
PADDED = PreferenceCollator(pad_token_id=0, packed=False)
SIGNS = ((1, -1), (-1, 1), (0, 1), (1, 1))
LOSS = PreferenceLoss(objectives=tiny_runs.OBJECTIVES, beta=2.0, seed=7)


def make(folder, collator=PADDED, *, samples=None, loss=LOSS, model=None, **changes):
    samples = tiny_runs.samples(4) if samples is None else samples
    model = tiny_runs.qwen2() if model is None else model
    return MixedTrainer(
        model,
        arguments(folder, **changes),
        train_dataset=samples,
        eval_dataset=samples,
        data_collator=collator,
        amopo=loss,
    )


@pytest.mark.parametrize("collator", [PACKED, PADDED], ids=["packed", "padded"])
@pytest.mark.parametrize("parts", [1, 2])
def test_steps_are_those_of_our_trainer_however_batches_are_cut(tmp_path, collator, parts):
    """One step of four samples: at once by AMoPOTrainer, here in one micro-batch or two."""
    ours = AMoPOTrainer(
        tiny_runs.qwen2(),
        tiny_runs.config(tmp_path / "ours", optim="sgd", tokens_per_batch=10_000, num_train_epochs=3),
        train_dataset=tiny_runs.samples(4),
    )
    ours.train()
    mixed = make(
        tmp_path / "mixed",
        collator,
        per_device_train_batch_size=4 // parts,
        gradient_accumulation_steps=parts,
        num_train_epochs=3,
    )
    mixed.train()
    assert difference(mixed.model, ours.model) < 1e-5
    assert len(logs(mixed)) == len(logs(ours)) == 3
    for got, expected in zip(logs(mixed), logs(ours), strict=True):
        for name in (
            "loss",
            "grad_norm",
            *(n for n in expected if n.startswith(("rewards/", "logps/", "amopo/alpha/"))),
        ):
            assert got[name] == pytest.approx(expected[name], rel=2e-4, abs=2e-5), name


def test_unequal_micro_batches_are_a_mean_over_samples(tmp_path):
    """Five samples in micro-batches of 2, 2, 1: the last sample weighs as much as the others."""
    samples = tiny_runs.samples(5)
    whole = make(tmp_path / "a", samples=samples, per_device_train_batch_size=5)
    parts = make(tmp_path / "b", samples=samples, per_device_train_batch_size=2, gradient_accumulation_steps=3)
    whole.train(), parts.train()
    assert difference(parts.model, whole.model) < 1e-6
    assert logs(parts)[0]["loss"] == pytest.approx(logs(whole)[0]["loss"], rel=1e-5)


def test_evaluation_is_a_mean_over_samples_through_the_same_forward(tmp_path):
    samples = tiny_runs.samples(5)
    trainer = make(tmp_path, PACKED, samples=samples, per_device_eval_batch_size=2)
    found = trainer.evaluate()
    ours = AMoPOTrainer(tiny_runs.qwen2(), tiny_runs.config(tmp_path), eval_dataset=samples).evaluate()
    names = {name for name in ours if name.startswith(("eval_rewards", "eval_logps", "eval_amopo"))} | {"eval_loss"}
    for name in names:
        assert found[name] == pytest.approx(ours[name], rel=2e-4, abs=2e-5), name
    assert trainer.evaluate()["eval_loss"] == found["eval_loss"], "its noise is fixed"


def test_signs_reach_the_loss_packed_and_padded(tmp_path):
    plain = tiny_runs.samples(4)
    signed = [TokenizedSample(s.prompts, s.chosen, s.rejected, s.id, k) for s, k in zip(plain, SIGNS, strict=True)]
    columns = ("prompts", "chosen", "rejected", "id", "signs")
    rows = [{name: getattr(sample, name) for name in columns} for sample in signed]
    packed, padded = make(tmp_path / "a", PACKED, samples=signed), make(tmp_path / "b", PADDED, samples=rows)
    unsigned = make(tmp_path / "c", PADDED, samples=plain)
    for trainer in (packed, padded, unsigned):
        trainer.train()
    assert difference(packed.model, padded.model) < 1e-5
    assert logs(packed)[0]["loss"] == pytest.approx(logs(padded)[0]["loss"], rel=1e-5)
    assert abs(logs(padded)[0]["loss"] - logs(unsigned)[0]["loss"]) > 1e-3


def test_samples_without_an_id_are_refused():
    with pytest.raises(ValueError, match="a sample needs an id of its own"):
        PADDED([{"prompts": [[1], [2]], "chosen": [3], "rejected": [4]}])


def test_columns_that_the_collator_reads_stay_in_a_dataset(tmp_path):
    datasets = pytest.importorskip("datasets")
    samples = tiny_runs.samples(4)
    rows = [{"prompts": list(s.prompts), "chosen": s.chosen, "rejected": s.rejected, "id": s.id} for s in samples]
    of_rows = make(tmp_path / "a", samples=datasets.Dataset.from_list(rows))
    of_samples = make(tmp_path / "b", samples=samples)
    of_rows.train(), of_samples.train()
    assert logs(of_rows)[0]["loss"] == pytest.approx(logs(of_samples)[0]["loss"], rel=1e-6)


def test_a_padded_batch_of_ones_own_in_trls_form(tmp_path):
    """`completion_mask` instead of labels, all chosen first: one objective."""

    def collate(samples):
        batch = PADDED(samples)
        order = torch.arange(len(batch["labels"])).view(-1, 2).t().flatten()
        rows = {name: batch[name][order] for name in ("input_ids", "attention_mask", "labels")}
        labels = rows.pop("labels")
        return {**rows, "completion_mask": (labels != -100).long(), "amopo_sample_ids": batch["amopo_sample_ids"]}

    samples = tiny_runs.samples(4, num_objectives=1)
    settings = {"objectives": ["overall"], "beta": 2.0, "objective": "simpo"}
    theirs = make(tmp_path / "a", collate, samples=samples, loss=PreferenceLoss(**settings, order="chosen_first"))
    mine = make(tmp_path / "b", PADDED, samples=samples, loss=PreferenceLoss(**settings))
    theirs.train(), mine.train()
    assert (
        difference(theirs.model, mine.model) < 1e-5
    )  # another order of rows, another rounding, and Adam divides by it


def test_training_raises_the_margins(tmp_path):
    trainer = make(tmp_path, PACKED, num_train_epochs=30, learning_rate=0.05)
    trainer.train()
    found = logs(trainer)
    assert found[-1]["loss"] < found[0]["loss"] - 0.1
    for objective in tiny_runs.OBJECTIVES:
        assert found[-1][f"rewards/margins/{objective}"] > found[0][f"rewards/margins/{objective}"] + 0.5


def test_several_gpus_in_one_process_are_refused(tmp_path, monkeypatch):
    given = arguments(tmp_path)
    monkeypatch.setattr(type(given), "n_gpu", 2)
    with pytest.raises(ValueError, match="2 GPUs are visible to one process, .* nn.DataParallel; start one"):
        MixedTrainer(tiny_runs.qwen2(), given, train_dataset=tiny_runs.samples(4), data_collator=PADDED, amopo=LOSS)


@pytest.mark.parametrize("kind", ["tensor", "context", "sequence"])
def test_parallelism_within_a_sample_is_refused(kind, tmp_path, monkeypatch):
    name = {"tensor": "get_tp_size", "context": "get_cp_size", "sequence": "get_sp_size"}[kind]
    monkeypatch.setattr(MixedTrainer, name, lambda self: 2)
    with pytest.raises(ValueError, match=rf"MixedTrainer does not support {kind} parallelism \(size 2\)"):
        make(tmp_path)


def test_a_model_inside_data_parallel_is_refused(tmp_path):
    with pytest.raises(ValueError, match="nn.DataParallel cannot run packed rows"):
        make(tmp_path, model=torch.nn.DataParallel(tiny_runs.qwen2()))


def test_what_cannot_be_right_is_refused(tmp_path):
    model, data = tiny_runs.qwen2(), tiny_runs.samples(4)
    with pytest.raises(TypeError, match="amopo must be a PreferenceLoss"):
        MixedTrainer(model, arguments(tmp_path), train_dataset=data, data_collator=PADDED, amopo={"beta": 1})
    with pytest.raises(ValueError, match="compute_metrics has no meaning here"):
        MixedTrainer(
            model, arguments(tmp_path), train_dataset=data, data_collator=PADDED, amopo=LOSS, compute_metrics=print
        )
    with pytest.raises(ValueError, match="label_smoothing_factor"):
        make(tmp_path, label_smoothing_factor=0.1)
    with pytest.raises(ValueError, match="use_liger_kernel would replace"):
        trainer = make(tmp_path)
        trainer.args.use_liger_kernel = True
        trainer._check_arguments()
    with pytest.raises(ValueError, match="do not hold whole samples|does not hold whole samples of 6 rows"):
        make(tmp_path, loss=PreferenceLoss(objectives=["a", "b", "c"]), samples=tiny_runs.samples(2)).train()
    with pytest.raises(ValueError, match="num_objectives=3 but the layout has 2"):
        make(tmp_path, PACKED, loss=PreferenceLoss(objectives=["a", "b", "c"])).train()
    with pytest.raises(ValueError, match="needs amopo_layout, labels or completion_mask, got input_ids"):
        make(tmp_path, lambda samples: {"input_ids": torch.ones(4, 3, dtype=torch.int64)}).train()
    with pytest.raises(ValueError, match="list of at least one name, got 'helpfulness'"):
        PreferenceLoss(objectives="helpfulness")


def test_collators_say_what_they_need():
    with pytest.raises(ValueError, match="needs pad_token_id"):
        PreferenceCollator(packed=False)
    with pytest.raises(ValueError, match="packed rows have no padding"):
        PreferenceCollator(pad_to_multiple_of=8)
    with pytest.raises(ValueError, match="got no samples"):
        PADDED([])
    with pytest.raises(TypeError, match="takes TokenizedSample, or prompts, chosen, rejected .token ids., got prompt"):
        PADDED([{"prompt": "x"}])
    with pytest.raises(ValueError, match=r"same number of prompts, got \[1, 2\]"):
        PADDED([*tiny_runs.samples(1), *tiny_runs.samples(1, num_objectives=1, prefix="t")])


def test_padded_rows_stand_sample_by_sample_and_labels_are_the_responses():
    samples = tiny_runs.samples(2)
    batch = PreferenceCollator(pad_token_id=0, packed=False, pad_to_multiple_of=8)(samples)
    rows = [p + r for s in samples for p in s.prompts for r in (s.chosen, s.rejected)]
    responses = [r for s in samples for _ in s.prompts for r in (s.chosen, s.rejected)]
    assert batch["input_ids"].shape == batch["labels"].shape and batch["input_ids"].shape[1] % 8 == 0
    for ids, mask, labels, row, response in zip(
        batch["input_ids"], batch["attention_mask"], batch["labels"], rows, responses, strict=True
    ):
        assert ids[mask.bool()].tolist() == row and labels[labels != -100].tolist() == response
        assert labels[len(row) - 1] == response[-1] and int(mask[len(row) :].sum()) == 0
