"""What attention over a packed row takes.

    saved by the forward     q, out [T, Hq, D], gathered k and v [S, Hkv, D], lse fp32 [Hq, T]
    inside the backward      dq in fp32 [T + 128 P, Hq, D'], row sums fp32 [Hq, T + 128 P], and where heads share keys
                             dk and dv of every query head [S, Hq, D]

with T tokens, S keys of all P paths (S = T where nothing is shared), Hq query and Hkv key-value heads of size D, and D'
the next multiple of 32 (256 beyond 192). The last line is what flash-attention's `mha_varlen_bwd` allocates beside its
results, in torch's copy as in the package's (flash_attn/flash_api.cpp). What the kernel for CPUs takes inside (its
docstring has it) is not in a plan.
"""

from __future__ import annotations

from amopo.packing.attention_backends import runs_compiled_on_cpu


def saved(
    *, tokens: int, keys: int, heads: int, kv_heads: int, head_dim: int, itemsize: int, mask: int = 0,
    softcap: float | None = None, device: str = "cuda",
) -> int:  # fmt: skip
    """Bytes that one layer's attention keeps from forward to backward.

    On a CPU without the C++ kernel that is the loop over paths of torch's SDPA (`amopo.packing.sdpa`): outputs stand
    twice, by path and joined, and there is one mask of `mask` numbers in the dtype of the queries. With a softcap its
    products are written out there, and the scores that they keep are not in a plan.
    """
    by_path = device == "cpu" and not runs_compiled_on_cpu(softcap)
    rows = (3 if by_path else 2) * tokens * heads * head_dim + 2 * keys * kv_heads * head_dim
    return (rows + (mask if by_path else 0)) * itemsize + 4 * heads * tokens


def backward_workspace(
    *, tokens: int, keys: int, heads: int, kv_heads: int, head_dim: int, paths: int, itemsize: int
) -> int:
    """Bytes that the backward of one layer's varlen attention takes inside itself."""
    rounded = -(-head_dim // 32) * 32 if head_dim <= 192 else 256
    rows = tokens + 128 * paths
    accumulators = 4 * rows * heads * (rounded + 1)
    expanded = 2 * keys * heads * head_dim * itemsize if heads != kv_heads else 0
    return accumulators + expanded
