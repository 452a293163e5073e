"""How a patched model's head computes: the keyword arguments of `patch_forward` and `amopo.patch`.

`PatchOptions.check(model)` raises, when a model is patched, for what its first call would raise;
`.logps(head, rows, targets)` is the head's call with these options.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from amopo.head import Head, find_head, head_logps
from amopo_kernels.checks import check_budget
from amopo_kernels.workspace import workspace_bytes

# The input's own dtype is as good as "input"; which one that is shows under autocast only.
_LOGITS_DTYPES = (None, "input", torch.float32, torch.bfloat16, torch.float16, torch.float64)


class PatchOptions(NamedTuple):
    """The keyword arguments of `patch_forward` and `amopo.patch`."""

    logits_dtype: torch.dtype | str | None
    budget: int | None
    tensor_parallel: Any
    allow_unwrapped: bool

    def check(self, model: nn.Module) -> None:
        """Raise now for what the first call would raise; `model` is a causal LM."""
        if self.logits_dtype not in _LOGITS_DTYPES:
            raise ValueError(f'logits_dtype must be None, "input" or torch.float32, got {self.logits_dtype!r}')
        group = self.tensor_parallel
        if group is not None and not hasattr(group, "size"):
            raise TypeError(f"tensor_parallel must be a process group, got {type(group).__name__}")
        check_budget(self.budget)
        weight = getattr(find_head(model).lm_head, "weight", None)
        if self.budget is not None and group is None and weight is not None and weight.numel() > 0:
            shape = (1, weight.shape[1], weight.shape[0])
            workspace_bytes(shape, weight.dtype, self.budget, frozen=True, device=weight.device)  # the least there is

    def logps(self, head: Head, rows: Tensor, targets: Tensor) -> Tensor:
        """Log-probs [N] of `targets` [N] after the hidden states `rows` [N, H]."""
        return head_logps(
            head.lm_head,
            rows,
            targets,
            logit_scale=head.logit_scale,
            softcap=head.softcap,
            logits_dtype=self.logits_dtype,
            tensor_parallel=self.tensor_parallel,
            budget=self.budget,
        )
