"""Causal attention of segments of a packed row against the root-to-leaf paths that they end.

    path_attention(q[T, Hq, D], k[S, Hkv, D], v[S, Hkv, Dv], starts_q[P + 1], starts_k[P + 1], ...) -> out[T, Hq, Dv]

Contract: segment p, the queries `starts_q[p] : starts_q[p + 1]`, is the end of path p, the keys
`starts_k[p] : starts_k[p + 1]`. Query i of a segment of n, on a path of m keys, sees the keys up to m - n + i, of those
the last `window`:

    out[i] = sum_j softmax_j(scaling * q[i] . k[j]) v[j]

Query heads share key-value heads in order, Hq / Hkv of them each. Scores, exponentials and sums are fp32 whatever the
dtype; results are rounded once. Segments and heads do not see each other's numbers, and each is computed in the same
order every time: equal inputs give equal bits, on any number of threads.

Gradients, with p the probabilities and delta = sum(grad * out): dv = p^T grad, ds = p * (grad v^T - delta),
dq = scaling ds k, dk = scaling ds^T q (Dao et al. 2022, FlashAttention, appendix B.2). They cannot be differentiated
again, and neither forward-mode derivatives nor torch.func.grad are there.

C++ on a CPU alone (fp32, bf16, fp16): one parallel region over paths and key-value heads, in the forward over blocks
of queries too. Keys that no query of a block sees are not computed. Elsewhere torch's SDPA or a varlen kernel is called
(`amopo.packing.attention_backends`); `reference.path_attention` is the specification.

In the backward a path and head is one piece of work: a row of one path with two key-value heads keeps two threads busy.

Memory: out, and lse [T, Hq] in fp32. Inside, per thread: a block of scores in fp32 (192 x 256), in the backward two and
the dk and dv of a path and head, 4 (D + Dv) bytes for each of the longest path's keys; but for fp32 as much again, in
both directions, for its k and v.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.autograd import forward_ad

from amopo_kernels import cpp


def path_attention(
    q: Tensor, k: Tensor, v: Tensor, starts_q: Tensor, starts_k: Tensor, *, scaling: float, window: int | None = None
) -> Tensor:
    """Attention over paths, `[T, Hq, Dv]` in the dtype of q.

    Args:
        q: `[T, Hq, D]`; k: `[S, Hkv, D]`; v: `[S, Hkv, Dv]`, all in one dtype, any strides.
        starts_q, starts_k: int32 `[P + 1]`, ascending from 0 to T and to S.
        scaling: factor of the scores.
        window: keys that a query sees at most, itself among them; None: all before it.
    Raises:
        ValueError, TypeError: shapes, dtypes, devices or starts that do not fit. RuntimeError: the extension was not
        built; and a second derivative.
    """
    cpp.require()
    for name, tensor in (("q", q), ("k", k), ("v", v), ("starts_q", starts_q), ("starts_k", starts_k)):
        if tensor.device.type not in ("cpu", "meta") or tensor.device != q.device:
            raise ValueError(f"path_attention runs on the CPU, {name} is on {tensor.device}: use a varlen kernel")
        if not torch.compiler.is_compiling() and forward_ad.unpack_dual(tensor).tangent is not None:
            raise RuntimeError(f"path_attention has no forward-mode derivatives, {name} has a tangent: use SDPA")
    if window is not None and window < 1:
        raise ValueError(f"path_attention: a window of {window} keys; a query sees itself at least")
    return torch.ops.amopo.path_attention(q, k, v, starts_q, starts_k, scaling, window or 0)[0]
