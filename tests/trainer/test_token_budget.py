"""auto_budget lowers the token budget before the first step only."""

from __future__ import annotations

import logging
import shutil
from types import SimpleNamespace

import pytest
import torch

pytest.importorskip("transformers")

from scarce import trainer_of
from tiny_runs import config, qwen2, samples

from amopo.memory import track
from amopo.trainer import AMoPOTrainer, token_budget


def test_the_budget_is_not_touched_without_being_asked(tmp_path):
    trainer, _ = trainer_of(tmp_path, fails=lambda tokens, count: tokens > 100)
    with pytest.raises(torch.OutOfMemoryError):
        trainer.train()
    assert trainer.args.tokens_per_batch == 400


def test_auto_budget_halves_before_the_first_step_and_says_so(tmp_path, caplog):
    trainer, seen = trainer_of(tmp_path, fails=lambda tokens, count: tokens > 120, auto_budget=True)
    with caplog.at_level(logging.WARNING, logger="amopo"):
        trainer.train()
    assert trainer.args.tokens_per_batch == 100
    assert [record.args for record in caplog.records if "auto_budget" in record.message] == [(400, 200), (200, 100)]
    tried = 3  # two that failed, one that fitted
    assert max(seen[tried:]) <= 100 and trainer.state.global_step > 0
    assert all(p.grad is None or p.grad.isfinite().all() for p in trainer.model.parameters())


def test_auto_budget_does_nothing_in_mid_run(tmp_path):
    trainer, _ = trainer_of(tmp_path, fails=lambda tokens, count: count == 3, auto_budget=True, tokens_per_batch=200)
    with pytest.raises(torch.OutOfMemoryError, match="optimizer step 2"):
        trainer.train()
    assert trainer.args.tokens_per_batch == 200


def test_auto_budget_ends_where_the_longest_sample_does_not_fit(tmp_path):
    trainer, _ = trainer_of(tmp_path, fails=lambda tokens, count: True, auto_budget=True)
    with pytest.raises(torch.OutOfMemoryError, match="Tried to allocate"):
        trainer.train()
    assert trainer.args.tokens_per_batch >= max(trainer.train_lengths)


def test_trying_a_batch_changes_nothing_in_the_training(tmp_path):
    ways = {}
    for name, auto in (("plain", False), ("auto", True)):
        trainer, _ = trainer_of(tmp_path / name, fails=lambda tokens, count: False, auto_budget=auto)
        trainer.train()
        ways[name] = [p.detach().clone() for p in trainer.model.parameters()]
    assert all(torch.equal(a, b) for a, b in zip(ways["plain"], ways["auto"], strict=True))


def wide(tmp_path, **changes):
    """A model whose weights outweigh what its few tokens take."""
    model = qwen2(hidden_size=64, intermediate_size=512)
    settings = {"tokens_per_batch": 60, "max_samples_per_batch": 1, **changes}
    return AMoPOTrainer(model, config(tmp_path, **settings), train_dataset=samples(6))


def tried_bytes(trainer) -> int:
    trainer.create_optimizer_and_scheduler(4)  # as before the first step: without state
    with track(trainer.model) as memory:
        assert token_budget._tried(trainer) is None
    return max(memory.peaks.values())


@pytest.mark.parametrize("accumulation", [1, 2])
def test_what_is_tried_takes_what_a_step_of_the_training_takes(tmp_path, accumulation):
    tried = tried_bytes(wide(tmp_path, gradient_accumulation_steps=accumulation))
    trainer = wide(tmp_path, gradient_accumulation_steps=accumulation)
    with track(trainer.model) as memory:
        trainer.train()
    assert len(memory.steps) == 6 // accumulation
    assert tried == pytest.approx(max(memory.peaks.values()), rel=0.03)


def test_the_buckets_of_ddp_are_set_aside(tmp_path, monkeypatch):
    alone = tried_bytes(wide(tmp_path))
    trainer = wide(tmp_path)
    trainer.get_train_dataloader()
    monkeypatch.setattr(type(trainer.args), "world_size", 2)
    assert tried_bytes(trainer) - alone == sum(p.nbytes for p in trainer.model.parameters())


def test_a_run_whose_budget_was_lowered_is_resumed_with_it(tmp_path, caplog):
    def lowered(name, **changes):
        changes = {"auto_budget": True, "save_strategy": "steps", "save_steps": 2, "num_train_epochs": 2, **changes}
        return trainer_of(tmp_path / name, fails=lambda tokens, count: tokens > 120, **changes)[0]

    whole = lowered("whole")
    whole.train()
    first = lowered("cut", max_steps=-1)
    first.train()
    steps = first.state.global_step
    for folder in (tmp_path / "cut").glob("checkpoint-*"):  # as if it had ended after the second step
        if folder.name != "checkpoint-2":
            shutil.rmtree(folder)
    again = lowered("cut")
    with caplog.at_level(logging.WARNING, logger="amopo"):
        again.train(resume_from_checkpoint=True)
    assert again.args.tokens_per_batch == 100 and again.state.global_step == steps
    assert "has lowered tokens_per_batch from 400 to 100" in caplog.text
    for a, b in zip(whole.model.parameters(), again.model.parameters(), strict=True):
        assert torch.equal(a, b)
    for changes in ({"auto_budget": False}, {"tokens_per_batch": 350}):
        with pytest.raises(ValueError, match="tokens_per_batch"):
            lowered("cut", **changes).train(resume_from_checkpoint=True)


@pytest.mark.parametrize("given, recorded, kept", [(400, 100, 100), (401, 100, 100), (400, 400, 400), (400, 300, 400)])
def test_only_a_halved_budget_is_taken_over(given, recorded, kept):
    args = SimpleNamespace(tokens_per_batch=given)
    token_budget.keep_budget(args, {"tokens_per_batch": recorded})
    assert args.tokens_per_batch == kept
    token_budget.keep_budget(args, None)
    assert args.tokens_per_batch == kept
