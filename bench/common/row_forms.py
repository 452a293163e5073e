"""Forms of the row pass, and how many bytes each moves per logit.

Two counts. *State bytes* are what any method must move: every logit read once, every entry of G written once. *Asked
bytes* are what the Triton and C++ kernels ask for, every sweep over a row counted (a cache may answer a part of them):

    fp32 -> bf16     one read, one write                     4 + 2      = 6    asked 6
    fp32 -> fp16     two reads (S before the first store)    4 + 4 + 2  = 10   state 6
    fp32 in place    two reads (the maximum comes first)     4 + 4 + 4  = 12   state 8
    bf16 in place    two reads, likewise                     2 + 2 + 2  = 6    state 4

Left out: the rare clamped row, which the first form reads and writes once more; vectors of one number per row; lines
that a CPU reads before it writes to them. The eager form is many element-wise operations: its bytes are not counted.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class RowForm:
    """dtype of the logits, dtype of G, and how often a row of logits is read."""

    logits: torch.dtype
    stored: torch.dtype
    reads: int

    @property
    def in_place(self) -> bool:
        return self.logits == self.stored

    @property
    def state_bytes(self) -> int:
        """Per logit: one read, one write."""
        return self.logits.itemsize + self.stored.itemsize

    @property
    def asked_bytes(self) -> int:
        """Per logit, of the kernels: all reads, one write."""
        return self.reads * self.logits.itemsize + self.stored.itemsize


FORMS = {
    "fp32_to_bf16": RowForm(torch.float32, torch.bfloat16, 1),
    "fp32_to_fp16": RowForm(torch.float32, torch.float16, 2),
    "fp32_in_place": RowForm(torch.float32, torch.float32, 2),
    "bf16_in_place": RowForm(torch.bfloat16, torch.bfloat16, 2),
}


def of_copy(form: RowForm, provider: str, seconds: float, copy_seconds: float | None, logits: int) -> dict:
    """What follows from a median: bytes per logit, bandwidth and share of the copy's bandwidth, by both counts.

    Args:
        provider: "copy" (which moves `state_bytes` per logit), or a backend. seconds, copy_seconds: medians; without
            the copy's no shares. logits: rows * vocabulary.
    """
    counts = {"": form.state_bytes}
    if provider != "eager":
        counts["asked_"] = form.state_bytes if provider == "copy" else form.asked_bytes
    info = {}
    for prefix, count in counts.items():
        bandwidth = logits * count / seconds
        info |= {f"{prefix}bytes": logits * count, f"{prefix}bytes_per_logit": count, f"{prefix}bandwidth": bandwidth}
        if copy_seconds is not None:
            info[f"{prefix}of_copy"] = bandwidth / (logits * form.state_bytes / copy_seconds)
    return info
