"""Log-probs of whole sequences, from one forward of a packed batch.

Contract
--------
`packed_logps(model, batch) -> sum_logps [B, K, 2]`: for each sample, objective and response (chosen = 0, rejected = 1)
the sum of the response tokens' log-probs, fp32 (fp64 for fp64 models), differentiable. `model` is a causal LM, bare or
wrapped; it is patched for the call if `patch_forward` was not used. `batch` is made by `amopo.pack`, on the model's
device.

`sum_by_sequence` is the reduction alone: per-row log-probs [R] and a layout -> [B, K, 2].
"""

from __future__ import annotations

import contextlib

import torch
from torch import Tensor, nn

from amopo.packed import fan_out
from amopo.packing.layout import TreeLayout
from amopo.packing.pack import PackedBatch
from amopo.trainer.forward import is_patched, patch_forward
from amopo_kernels.segments import sequence_stats


def sum_by_sequence(logps: Tensor, layout: TreeLayout) -> Tensor:
    """Sums of response-token log-probs per sequence, [B, K, 2], for per-row `logps` [R]."""
    logps = fan_out(logps, layout)
    sums = sequence_stats(logps, layout.offsets).sum_logp
    return sums.view(layout.num_samples, layout.num_objectives, 2)


def check_logps_dtype(logps: object) -> Tensor:
    """The log-probs, if they came back as the forward made them."""
    if not isinstance(logps, Tensor) or logps.dtype not in (torch.float32, torch.float64):
        what = logps.dtype if isinstance(logps, Tensor) else type(logps).__name__
        raise TypeError(
            f"the model's forward returned {what} instead of fp32 log-probs; a wrapper around the model has changed "
            "them, turn off its casting of outputs"
        )
    return logps


def packed_logps(model: nn.Module, batch: PackedBatch) -> Tensor:
    """Summed log-probs [B, K, 2] of a packed batch under `model`."""
    with contextlib.nullcontext() if is_patched(model) else patch_forward(model):
        logps = model(input_ids=batch.input_ids, position_ids=batch.position_ids, amopo_layout=batch.layout)
    return sum_by_sequence(check_logps_dtype(logps), batch.layout)
