"""Where phases begin and end in loops of several kinds, and that a tracker leaves nothing behind."""

from __future__ import annotations

import contextlib

import pytest
import torch
from torch import nn
from torch.nn.modules import module as modules
from torch.optim import optimizer as optimizers
from torch.utils._python_dispatch import _get_current_dispatch_mode

import amopo
from amopo.memory import tracking

KIB = 1 << 10
WEIGHT = 256 * 256 * 4


def parts():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(256, 256, bias=False), nn.Linear(256, 256, bias=False))
    return model, torch.optim.SGD(model.parameters(), lr=0.1)


def step(model, optimizer, rows=8, batches=1):
    for _ in range(batches):
        model(torch.ones(rows, 256)).sum().backward()
    optimizer.step()
    optimizer.zero_grad()


def hooks():
    return (
        dict(modules._global_forward_pre_hooks),
        dict(optimizers._global_optimizer_pre_hooks),
        dict(optimizers._global_optimizer_post_hooks),
        _get_current_dispatch_mode(),
        list(tracking._ACTIVE),
    )


def test_gradients_that_are_dropped_after_the_step_are_not_the_next_forwards():
    model, optimizer = parts()
    with amopo.memory.track(model, optimizer) as memory:
        for _ in range(3):
            step(model, optimizer)
    assert memory.peaks["step"] == pytest.approx(4 * WEIGHT, abs=64 * KIB)  # weights and gradients
    assert memory.peaks["forward"] == pytest.approx(2 * WEIGHT, abs=64 * KIB)


def test_the_forward_of_an_accumulated_batch_holds_the_gradients_of_the_one_before():
    model, optimizer = parts()
    with amopo.memory.track(model, optimizer) as memory:
        for _ in range(2):
            step(model, optimizer, batches=2)
    assert len(memory.steps) == 2
    assert memory.peaks["forward"] == pytest.approx(4 * WEIGHT, abs=64 * KIB)


def test_evaluation_is_a_phase_of_its_own():
    model, optimizer = parts()
    with amopo.memory.track(model, optimizer) as memory:
        for _ in range(2):
            step(model, optimizer)
            with torch.no_grad():
                model(torch.ones(4096, 256))
    assert memory.peaks["evaluation"] >= 2 * WEIGHT + 2 * 4096 * 1024
    assert max(memory.peaks[phase] for phase in ("forward", "backward", "step")) < 5 * WEIGHT


def test_a_checkpointed_layer_that_runs_again_is_backward():
    from torch.utils.checkpoint import checkpoint

    model, optimizer = parts()
    with amopo.memory.track(model, optimizer) as memory:
        for _ in range(2):
            checkpoint(model, torch.ones(8, 256), use_reentrant=False).sum().backward()
            optimizer.step()
            optimizer.zero_grad()
    assert memory.peaks["forward"] == pytest.approx(2 * WEIGHT, abs=64 * KIB)


class Engine:
    """An optimizer that is none of torch's and steps in parts, as DeepSpeed's does; it holds a flat buffer."""

    def __init__(self, model):
        self.buffers = {"flat": [torch.zeros(256 * KIB)]}
        self.parts = [torch.optim.SGD([p], lr=0.1) for p in model.parameters()]

    def step(self):
        for part in self.parts:
            flat = torch.cat([p.grad.flatten() for p in part.param_groups[0]["params"]])  # before torch's own step
            part.step()
            del flat


def test_an_engine_that_steps_in_parts_is_one_step_and_its_buffers_count():
    model, _ = parts()
    engine = Engine(model)
    own = engine.step
    with amopo.memory.track(model, engine) as memory:
        for _ in range(3):
            model(torch.ones(8, 256)).sum().backward()
            engine.step()
            model.zero_grad()
    assert len(memory.steps) == 3 and "step" not in vars(engine) and engine.step == own
    # weights, gradients, the buffer, and one part's copy of its gradient
    assert memory.peaks["step"] == pytest.approx(2 * WEIGHT + 2 * WEIGHT + 1024 * KIB + WEIGHT, abs=64 * KIB)
    assert memory.peaks["forward"] == pytest.approx(2 * WEIGHT + 1024 * KIB, abs=64 * KIB)


def head_loop(weight, optimizer, steps=2):
    rows = torch.randn(32, 64)
    for _ in range(steps):
        hidden = rows * weight[0]
        amopo.linear_logprobs(hidden, weight, torch.zeros(32, dtype=torch.long)).sum().backward()
        optimizer.step()
        optimizer.zero_grad()


def test_trackers_inside_each_other_see_the_same_phases():
    weight = nn.Parameter(torch.randn(2048, 64))
    optimizer = torch.optim.SGD([weight], lr=0.1)
    model = nn.Module()
    model.weight = weight
    with amopo.memory.track(model, optimizer) as alone:
        head_loop(weight, optimizer)
    with amopo.memory.track(model, optimizer) as outer:
        with amopo.memory.track(model, optimizer) as inner:
            head_loop(weight, optimizer)
        head_loop(weight, optimizer, steps=1)
    assert "head" in alone.peaks
    assert inner.peaks == outer.peaks == alone.peaks
    assert len(inner.steps) == 2 and len(outer.steps) == 3


@pytest.mark.parametrize("where", ["forward", "backward", "step", "head"])
def test_an_error_inside_leaves_nothing_behind(where):
    model, optimizer = parts()
    engine = Engine(model)
    before = hooks()

    def fail(*_):
        raise RuntimeError("no memory left")

    with pytest.raises(RuntimeError, match="no memory left"):
        with amopo.memory.track(model, engine) as outer, amopo.memory.track(model, engine) as memory:
            output = model(torch.ones(8, 256))
            if where == "forward":
                fail()
            if where == "backward":
                output.register_hook(fail)
            if where == "head":
                weight = nn.Parameter(torch.randn(2048, 256))
                logps = amopo.linear_logprobs(output, weight, torch.zeros(8, dtype=torch.long))
                logps.register_hook(fail)
                logps.sum().backward()
            output.sum().backward()
            engine.parts[1].step = fail
            engine.step()
    assert hooks() == before and "step" not in vars(engine)
    assert memory.peaks["forward"] > 0 and outer.peaks["forward"] > 0  # what the unfinished step took
    live = memory.meter.live()
    _ = torch.zeros(256 * KIB)
    assert memory.meter.live() <= live  # and it watches no more


def test_a_tracker_that_watches_is_not_entered_again():
    memory = amopo.memory.track(*parts())
    with memory:
        with pytest.raises(RuntimeError, match="watches already; make another one"):
            memory.__enter__()
    with contextlib.suppress(RuntimeError), memory:
        pass
    assert not tracking._ACTIVE


def test_the_trainer_is_watched_from_outside(tmp_path):
    pytest.importorskip("transformers")
    from tiny_runs import config, qwen2, samples

    from amopo.trainer import AMoPOTrainer

    trainer = AMoPOTrainer(qwen2(), config(tmp_path, max_steps=3, num_train_epochs=1), train_dataset=samples(12))
    before = hooks()
    with amopo.memory.track(trainer.model) as memory:
        trainer.train()
    assert hooks() == before
    assert len(memory.steps) == trainer.state.global_step == 3
    assert set(memory.peaks) == {"forward", "head", "backward", "step"}
    held = sum(p.nbytes for p in trainer.model.parameters())
    assert memory.peaks["step"] >= 4 * held  # with gradients and both moments
    assert memory.peaks["forward"] >= 3 * held
