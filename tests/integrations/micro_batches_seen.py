"""Whether a trainer has FSDP2 reduce gradients in a micro-batch, as far as the switch of its reductions goes."""

from __future__ import annotations

import torch
import transformers


class Recorder(torch.nn.Module):
    """A model as FSDP2 leaves it."""

    def __init__(self):
        super().__init__()
        self.seen = []

    def set_requires_gradient_sync(self, value):
        self.seen.append(value)


def check_reductions(trainer, monkeypatch, *, switched):
    """`switched`: what the switch is set to under FSDP2 before transformers runs the micro-batch; otherwise nothing."""
    monkeypatch.setattr(transformers.Trainer, "training_step", lambda self, model, inputs: model.seen.append("run"))
    for is_enabled, expected in ((True, switched), (False, [])):
        trainer.is_fsdp_enabled = is_enabled
        model = Recorder()
        trainer.training_step(model, {})
        assert model.seen == [*expected, "run"]
