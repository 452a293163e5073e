"""Out of memory says what to do, and auto_budget lowers the budget before the first step only."""

from __future__ import annotations

import logging

import pytest
import torch

pytest.importorskip("transformers")

from tiny_runs import config, qwen2, samples

from amopo.trainer import AMoPOTrainer


def trainer_of(tmp_path, *, fails, **changes):
    """A trainer whose model has no memory for rows that `fails` says so of; (trainer, tokens of all rows)."""
    trainer = AMoPOTrainer(qwen2(), config(tmp_path, **changes), train_dataset=samples(12))
    seen: list[int] = []
    forward = trainer.model.forward

    def limited(*args, **kwargs):
        tokens = kwargs["input_ids"].shape[1]
        seen.append(tokens)
        if fails(tokens, len(seen)):
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 is full.\nmore")
        return forward(*args, **kwargs)

    trainer.model.forward = limited
    return trainer, seen


def test_the_message_says_what_was_asked_the_plans_view_and_three_settings(tmp_path):
    trainer, _ = trainer_of(tmp_path, fails=lambda tokens, count: count == 2, tokens_per_batch=200)
    with pytest.raises(torch.OutOfMemoryError) as caught:
        trainer.train()
    message = str(caught.value)
    assert "optimizer step 2: CUDA out of memory. Tried to allocate 2.00 GiB" in message
    assert "By the plan a row of" in message and "forward" in message and "step" in message
    assert message.count("MiB);") == 2 and "tokens_per_batch=" in message


def test_other_errors_stay_what_they_are(tmp_path):
    trainer, _ = trainer_of(tmp_path, fails=lambda tokens, count: False)
    trainer.model.forward = lambda **kwargs: (_ for _ in ()).throw(RuntimeError("a bug"))
    with pytest.raises(RuntimeError, match="^a bug$"):
        trainer.train()


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


@pytest.mark.parametrize(
    "zero, expected",
    [
        ({"stage": 3}, "none"),
        ({"stage": 3, "offload_optimizer": {"device": "cpu"}}, "optimizer"),
        ({"stage": 3, "offload_optimizer": {"device": "cpu"}, "offload_param": {"device": "cpu"}}, "all"),
        ({"stage": 3, "offload_optimizer": {"device": "none"}}, "none"),
    ],
)
def test_what_deepspeed_offloads_is_planned_so(zero, expected):
    from accelerate.utils.deepspeed import HfDeepSpeedConfig

    from amopo.trainer.out_of_memory import _offload

    assert _offload(HfDeepSpeedConfig({"zero_optimization": zero})) == expected


def test_another_stage_of_zero_is_not_planned_as_the_third():
    from accelerate.utils.deepspeed import HfDeepSpeedConfig

    from amopo.trainer.out_of_memory import _offload

    with pytest.raises(ValueError, match="3 is planned"):
        _offload(HfDeepSpeedConfig({"zero_optimization": {"stage": 2}}))
