"""What `validate=True` looks at on the host: hidden states and log-probs that cannot be right, by name.

`offsets` int64 `[rows + 1]` are those of the rows' response tokens, `sequences` int64 `[B, K, 2]` the row of each
sequence. Raises ValueError that names sample, objective and side. Waits for the device on CUDA.
"""

from __future__ import annotations

import torch
from torch import Tensor

_ROUNDING = 1e-2  # half precision of another library's log-probs


def check_values(rows: Tensor, offsets: Tensor, sequences: Tensor) -> None:
    """Hidden rows `[N, H]` of the response tokens are finite."""
    bad = (~torch.isfinite(rows.detach()).all(1)).nonzero().flatten()
    if len(bad):
        raise ValueError(f"{_place(int(bad[0]), offsets, sequences)}: hidden holds NaN or inf")


def check_logps(logps: Tensor, offsets: Tensor, sequences: Tensor) -> None:
    """Log-probs `[N]` of the response tokens are finite and not above 0."""
    bad = (~torch.isfinite(logps.detach())).nonzero().flatten()
    if len(bad):
        value = float(logps.detach()[bad[0]])
        raise ValueError(
            f"{_place(int(bad[0]), offsets, sequences)}: a log-prob is {value}; its target's logit is -inf, or hidden "
            "or weight are not finite"
        )
    bad = (logps.detach() > _ROUNDING).nonzero().flatten()
    if len(bad):
        value = float(logps.detach()[bad[0]])
        raise ValueError(
            f"{_place(int(bad[0]), offsets, sequences)}: a log-prob is {value:.4g}, above 0; give log-probs of tokens, "
            "not logits or scores"
        )


def _place(position: int, offsets: Tensor, sequences: Tensor) -> str:
    """Sample, objective and side of a response row, in words."""
    offsets, sequences = offsets.cpu(), sequences.cpu()
    row = int(torch.searchsorted(offsets, position, right=True)) - 1
    sample, objective, side = (sequences == row).nonzero()[0].tolist()
    return f"sample {sample}, objective {objective}, {('chosen', 'rejected')[side]} (row {row})"
