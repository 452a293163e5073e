"""How often the Triton row pass reads a row, counted where Triton's interpreter loads.

fp32 logits to another tensor, or no G    once; a clamped row twice
in place (fp32, bf16)                     twice
fp16, in place or not                     twice; a clamped row three times
"""

from __future__ import annotations

import os

import pytest
import torch

pytest.importorskip("triton")
if os.environ.get("TRITON_INTERPRET") != "1":
    pytest.skip("counts loads of Triton's interpreter (TRITON_INTERPRET=1)", allow_module_level=True)

from triton.runtime.interpreter import InterpreterBuilder  # noqa: E402

from amopo_kernels.row_pass import RowState, Transform  # noqa: E402
from amopo_kernels.triton import launch  # noqa: E402

FP32, BF16, FP16 = torch.float32, torch.bfloat16, torch.float16
VOCAB = 9001  # two full blocks and a tail
CLAMPED = -60.0

# (dtype of the logits, dtype of G or None, in place, reads of a row, reads of a clamped row)
FORMS = [
    (FP32, BF16, False, 1, 2),
    (FP32, None, False, 1, 2),
    (FP16, None, False, 1, 2),
    (FP32, FP32, True, 2, 2),
    (BF16, BF16, True, 2, 2),
    (FP32, FP16, False, 2, 3),
    (FP16, FP16, True, 2, 3),
]


def name_of(value) -> str:
    return str(value).removeprefix("torch.")


@pytest.fixture
def loads(monkeypatch):
    """Addresses that were read, appended as they are."""
    seen, original = [], InterpreterBuilder.create_masked_load

    def counted(self, ptrs, mask, *rest):
        seen.append(torch.from_numpy(ptrs.data[mask.data].astype("int64").reshape(-1)))
        return original(self, ptrs, mask, *rest)

    monkeypatch.setattr(InterpreterBuilder, "create_masked_load", counted)
    return seen


@pytest.mark.parametrize("clamped", [False, True], ids=["", "clamped"])
@pytest.mark.parametrize("source, stored, in_place, reads, clamped_reads", FORMS, ids=name_of)
def test_a_row_is_read_no_more_often_than_it_must(loads, source, stored, in_place, reads, clamped_reads, clamped):
    logits = torch.randn(1, VOCAB).to(source)
    target = torch.tensor([4711])
    if clamped:
        logits[0, 4711] = CLAMPED
    exact = logits.double().log_softmax(1)[0, 4711]
    out = logits if in_place else None if stored is None else torch.empty(1, VOCAB, dtype=stored)
    logp, state = torch.empty(1), RowState.empty(1, FP32, torch.device("cpu"))
    half = FP16 in (source, stored)
    launch.row_pass(
        logits, target, None, Transform(), logp=logp, state=state, out=out, half_range=half, block_rows=1
    )  # fmt: skip
    first, last = logits.data_ptr(), logits.data_ptr() + logits.nbytes
    addresses = torch.cat(loads)
    elements = int(((addresses >= first) & (addresses < last)).sum())
    assert elements == (clamped_reads if clamped else reads) * VOCAB + 1  # and the target's logit once more
    assert abs(float(logp) / float(exact) - 1.0) < 1e-6
