"""Short trainings of tiny models, and the gradients of their steps."""

import tiny_runs
from transformers import TrainerCallback

from amopo.packing import TokenizedSample, packed_length
from amopo.trainer import AMoPOTrainer


class Gradients(TrainerCallback):
    """Keeps a copy of the gradients that each optimizer step uses."""

    def __init__(self):
        self.steps = []

    def on_pre_optimizer_step(self, args, state, control, model, **kwargs):
        self.steps.append({n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None})


def train(tmp_path, samples, *, model=None, callbacks=(), **settings):
    model = tiny_runs.qwen2() if model is None else model
    gradients = Gradients()
    trainer = AMoPOTrainer(
        model, tiny_runs.config(tmp_path, **settings), train_dataset=samples, callbacks=[gradients, *callbacks]
    )
    trainer.train()
    return trainer, gradients.steps


def three_and_one():
    """Three short samples and a long one, and the budget that makes two batches of them, 3 + 1."""
    short = tiny_runs.samples(3, longest=4)
    long = tiny_runs.samples(1, seed=1, longest=4, prefix="long")[0]
    room = sum(map(packed_length, short))
    while packed_length(long) < room:
        long = TokenizedSample([[*p, 5] for p in long.prompts], [*long.chosen, 6], long.rejected, long.id)
    return [*short, long], packed_length(long)


def steps_of(trainer):
    return [entry for entry in trainer.state.log_history if "loss" in entry]


def relative_error(got, expected):
    return max(float((got[n] - expected[n]).norm() / (expected[n].norm() + 1e-12)) for n in expected)
