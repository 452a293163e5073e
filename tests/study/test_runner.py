"""A study from data to results, in small; what makes the comparison a fair one."""

from __future__ import annotations

import json

import pytest
import torch

from amopo.cli.models import load
from amopo.evaluation.preferences import preference_metrics
from amopo.study import measure, runner
from amopo.study.methods import METHODS
from amopo.study.runner import run_study, training_samples
from amopo.study.tasks import TaskStudy

from .conftest import TINY

TIMES = ("train_cpu_seconds", "measure_cpu_seconds", "log")


def numbers(results: dict) -> dict:
    """Results without what the clock says."""
    return {
        seed: {
            name: {key: value for key, value in found.items() if key not in TIMES and key != "imitation"}
            for name, found in of_seed.items()
        }
        for seed, of_seed in results.items()
    }


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A study of two seeds, its folder, and what was watched while it ran."""
    from amopo.cli.console import Console
    from amopo.trainer.trainer import AMoPOTrainer

    folder = tmp_path_factory.mktemp("whole")
    steps, starts = {}, {}
    patch = pytest.MonkeyPatch()
    get_batch_samples, train = AMoPOTrainer.get_batch_samples, runner._train

    def counted(self, *args, **kwargs):
        batches, count = get_batch_samples(self, *args, **kwargs)
        if batches:
            steps.setdefault(watched[0], []).append(count)
        return batches, count

    watched = [None]

    def watch(study, method, seed, model, *args):
        watched[0] = (seed, method.name)
        starts[watched[0]] = [parameter.detach().clone() for parameter in model.parameters()]
        return train(study, method, seed, model, *args)

    patch.setattr(AMoPOTrainer, "get_batch_samples", counted)
    patch.setattr(runner, "_train", watch)
    try:
        results = run_study(TaskStudy(TINY), seeds=[1, 2], folder=folder, console=Console(quiet=True))
    finally:
        patch.undo()
    return results, folder, steps, starts


def test_every_method_takes_the_same_steps_over_the_same_number_of_pairs(whole):
    _, _, steps, _ = whole
    assert set(steps) == {(seed, method.name) for seed in (1, 2) for method in METHODS}
    assert all(counts == [8, 8] for counts in steps.values())


def test_all_methods_of_a_seed_begin_at_the_same_model(whole):
    _, folder, _, starts = whole
    for seed in (1, 2):
        model, _ = load(str(folder / f"seed-{seed}" / "imitation"))
        for method in METHODS:
            for kept, begun in zip(model.parameters(), starts[seed, method.name], strict=True):
                assert torch.equal(kept, begun)
    assert not torch.equal(starts[1, "mean"][0], starts[2, "mean"][0])


def test_every_seed_and_method_has_its_result(whole):
    results, folder, _, _ = whole
    names = ["start", *(method.name for method in METHODS)]
    assert {seed: list(of_seed) for seed, of_seed in results.items()} == {1: names, 2: names}
    for name in names:
        found = results[1][name]
        assert len(found["drawn"]["helpfulness"]["mean"]) == 6 and len(found["margins"]["plain"]) == 6
        assert found == json.loads((folder / "seed-1" / f"{name}.json").read_text())
    assert results[1]["gaussian"]["margins"] != results[1]["start"]["margins"]


def test_margins_are_those_of_the_trainers_own_evaluation(whole):
    results, folder, _, _ = whole
    study = TaskStudy(TINY)
    inputs = study.read(folder / "seed-1", 1)
    model, tokenizer = load(str(folder / "seed-1" / "imitation"))
    samples = measure.tokenize(
        inputs.evaluation.pairs,
        tokenizer,
        objectives=study.objectives,
        scales=inputs.scales,
        template=study.template,
        max_prompt_length=TINY.max_prompt_length,
        max_response_length=TINY.max_response_length,
    )
    expected = preference_metrics(model, samples, objectives=study.objectives, beta=TINY.beta, use_cpu=True)
    for name in study.objectives:
        values = results[1]["start"]["margins"][name]
        assert sum(values) / len(values) == pytest.approx(expected[f"rewards/margins/{name}"], abs=1e-5)


def test_the_placebo_sees_the_training_pairs_with_some_swapped_and_simpo_without_templates(whole):
    _, folder, _, _ = whole
    study = TaskStudy(TINY)
    inputs = study.read(folder / "seed-1", 1)
    _, tokenizer = load(str(folder / "seed-1" / "imitation"))
    seen = {m.name: training_samples(study, m, tokenizer, inputs, seed=1) for m in METHODS}
    assert seen["gaussian"] == seen["mean"] == seen["uniform"]
    flags = [a.chosen == b.rejected for a, b in zip(seen["gaussian"], seen["placebo"], strict=True)]
    assert 0 < sum(flags) < len(flags)
    assert len(inputs.train.pairs) >= 41 and len(seen["simpo"]) == 40  # whole batches of four
    for pair, one, all_terms in zip(inputs.train.pairs, seen["simpo"], seen["gaussian"], strict=False):
        assert len(one.prompts) == 1 and len(all_terms.prompts) == 4
        assert (one.chosen, one.rejected, one.id) == (all_terms.chosen, all_terms.rejected, all_terms.id)
        text = tokenizer.decode(one.prompts[0])
        assert text == f"<|user|>{pair.prompt[-1]['content']}<|end|><|assistant|>"


def test_a_stopped_study_goes_on_with_what_is_missing_and_ends_the_same(whole, tmp_path, console, monkeypatch):
    results, _, _, _ = whole
    measured = TaskStudy.measure
    calls = []

    def stopped(self, *args):
        calls.append(len(calls))
        if len(calls) == 4:  # after the start, gaussian and mean of the first seed
            raise KeyboardInterrupt
        return measured(self, *args)

    monkeypatch.setattr(TaskStudy, "measure", stopped)
    methods = METHODS[:3]
    with pytest.raises(KeyboardInterrupt):
        run_study(TaskStudy(TINY), seeds=[1, 2], folder=tmp_path, console=console, methods=methods)
    kept = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "seed-1").glob("*.json")}
    assert set(kept) == {"start.json", "gaussian.json", "mean.json"}
    found = run_study(TaskStudy(TINY), seeds=[1, 2], folder=tmp_path, console=console, methods=methods)
    # three results were there, one was under way, four are of the second seed
    assert len(calls) == 4 + 1 + 4
    assert all((tmp_path / "seed-1" / name).stat().st_mtime_ns == time for name, time in kept.items())
    expected = {seed: {name: of_seed[name] for name in found[1]} for seed, of_seed in results.items()}
    assert numbers(found) == numbers(expected)


def test_a_folder_of_another_study_is_refused_before_anything_runs(whole, console):
    _, folder, _, _ = whole
    other = TaskStudy(type(TINY)(**{**vars(TINY), "steps": 3}))
    with pytest.raises(ValueError, match="was made with steps=2, this study has steps=3"):
        run_study(other, seeds=[1], folder=folder, console=console)
