"""Gradients of a micro-batch: in pieces as soon as it is over, under FSDP2.

Contract
--------
transformers runs every micro-batch of an optimizer step but the last inside accelerate's `no_sync`. FSDP2 then keeps
the gradients as they were made, whole, of all parameters on every rank, until the last one. `ReducedMicroBatches`, put
before a Trainer class, reduces the gradients of each micro-batch, so that they are in pieces from the first on: one
reduce-scatter per micro-batch in place of one per step, and the same result to rounding. Other engines are left alone.

`wants_whole_gradients(args)`: whether the user asked for one reduction per step, by `sync_each_batch=False` in the
`gradient_accumulation_kwargs` of `accelerator_config`. Nothing is reduced early then.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn


class ReducedMicroBatches:
    """Put it before any `transformers.Trainer`."""

    def training_step(self, model: nn.Module, *args: Any, **kwargs: Any) -> Tensor:
        """Forward and backward of one micro-batch; under FSDP2 its gradients are sharded when it is over."""
        # transformers has entered no_sync by now. FSDP1 has no such switch.
        if self.is_fsdp_enabled and not wants_whole_gradients(self.args):
            if hasattr(model, "set_requires_gradient_sync"):
                model.set_requires_gradient_sync(True)
        return super().training_step(model, *args, **kwargs)


def wants_whole_gradients(args: Any) -> bool:
    """Whether `accelerator_config` says `sync_each_batch=False`: one reduction a step, whole gradients until then."""
    given = getattr(args.accelerator_config, "gradient_accumulation_kwargs", None) or {}
    return given.get("sync_each_batch") is False
