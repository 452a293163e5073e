"""One schema per operation, which the eager form, the C++ form and the compiler share.

`torch.ops.amopo.<name>` for row_pass, row_pass_, tile_pass, tile_pass_, segment_moments and weighted_loss, which are
element-wise. Eager PyTorch is registered for every device; where the C++ extension is loaded it takes over on the CPU
(all but fp64). A name with a trailing underscore writes G over the logits. No gradient is registered: their callers
have them.

path_attention and path_attention_backward have C++ alone, and the first its gradient; gradients of gradients raise.

    row_pass         numerics of `row_pass.py`: logits [C, V] -> logp, reference, mass, factor [C]; G -> out (optional)
    tile_pass        G of a vocabulary tile from a row's reference, mass and factor
    segment_moments  logps [N], starts, stops -> sum, length, mean and variance of probabilities per segment
    weighted_loss    logps [N], starts, stops [B, K, 2] -> losses [B], weights [B, K], coefficients, sums,
                     lengths [B, K, 2], logged [B, len(LOGGED), K]
    path_attention   q [T, Hq, D], k [S, Hkv, D], v [S, Hkv, Dv] -> out [T, Hq, Dv], lse [T, Hq]; a window of 0 is none
"""

from __future__ import annotations

import torch
from torch import Tensor

from amopo_kernels import row_pass as rows
from amopo_kernels.mobt import LOGGED, mobt_eager
from amopo_kernels.segments import segment_moments

_BLOCK_BYTES = 8 << 20

_HEAD = "Tensor targets, Tensor? bias, float? scale, float? softcap, bool half_range"
_FILLED = "Tensor(b!) logp, Tensor(c!) reference, Tensor(d!) mass, Tensor(e!) factor"
_KNOWN = "Tensor reference, Tensor mass, Tensor factor"
_HEADS = "Tensor q, Tensor k, Tensor v"
_STARTS = "Tensor starts_q, Tensor starts_k, float scaling, int window"
SCHEMAS = (
    f"row_pass(Tensor logits, {_HEAD}, {_FILLED}, Tensor(f!)? out) -> ()",
    f"row_pass_(Tensor(a!) logits, {_HEAD}, {_FILLED}) -> ()",
    f"tile_pass(Tensor logits, {_HEAD}, {_KNOWN}, Tensor(f!) out) -> ()",
    f"tile_pass_(Tensor(a!) logits, {_HEAD}, {_KNOWN}) -> ()",
    "segment_moments(Tensor logps, Tensor starts, Tensor stops) -> (Tensor, Tensor, Tensor, Tensor)",
    "weighted_loss(Tensor logps, Tensor starts, Tensor stops, str weights, Tensor? given, Tensor sample_ids, int seed, "
    "Tensor step, float beta, float gamma, str pooled, Tensor? present=None) -> "
    "(Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)",
    f"path_attention({_HEADS}, {_STARTS}) -> (Tensor, Tensor)",
    f"path_attention_backward(Tensor grad, {_HEADS}, Tensor out, Tensor lse, {_STARTS}) -> (Tensor, Tensor, Tensor)",
)

_LIBRARY = torch.library.Library("amopo", "FRAGMENT")
for _schema in SCHEMAS:
    _LIBRARY.define(_schema)


def _block_rows(logits: Tensor) -> int:
    return max(1, _BLOCK_BYTES // (4 * max(1, logits.shape[1])))


def _row_pass(logits, targets, bias, scale, softcap, half_range, logp, reference, mass, factor, out) -> None:
    # The eager form works in place on logits of its own dtype; this schema promises not to.
    work = logits.clone() if logits.dtype == logp.dtype else logits
    _eager_rows(work, targets, bias, scale, softcap, half_range, logp, reference, mass, factor, out)


def _row_pass_(logits, targets, bias, scale, softcap, half_range, logp, reference, mass, factor) -> None:
    _eager_rows(logits, targets, bias, scale, softcap, half_range, logp, reference, mass, factor, logits)


def _eager_rows(logits, targets, bias, scale, softcap, half_range, logp, reference, mass, factor, out) -> None:
    rows.row_pass(
        logits,
        targets,
        bias,
        rows.Transform(scale, softcap),
        logp=logp,
        state=rows.RowState(reference, mass, factor),
        out=out,
        half_range=half_range,
        block_rows=_block_rows(logits),
    )


def _tile_pass(logits, targets, bias, scale, softcap, half_range, reference, mass, factor, out) -> None:
    work = logits.clone() if logits.dtype == mass.dtype else logits
    _eager_tile(work, targets, bias, scale, softcap, half_range, reference, mass, factor, out)


def _tile_pass_(logits, targets, bias, scale, softcap, half_range, reference, mass, factor) -> None:
    _eager_tile(logits, targets, bias, scale, softcap, half_range, reference, mass, factor, logits)


def _eager_tile(logits, targets, bias, scale, softcap, half_range, reference, mass, factor, out) -> None:
    rows.tile_pass(
        logits,
        targets,
        bias,
        rows.Transform(scale, softcap),
        state=rows.RowState(reference, mass, factor),
        out=out,
        half_range=half_range,
        block_rows=_block_rows(logits),
    )


def _weighted_loss(logps, starts, stops, weights, given, sample_ids, seed, step, beta, gamma, pooled, present=None):
    return mobt_eager(
        logps, starts, stops, weights=weights, given=given, sample_ids=sample_ids, seed=seed, step=step,
        beta=beta, gamma=gamma, pooled=pooled, present=present,
    )  # fmt: skip


EAGER = {
    "row_pass": _row_pass,
    "row_pass_": _row_pass_,
    "tile_pass": _tile_pass,
    "tile_pass_": _tile_pass_,
    "segment_moments": segment_moments,
    "weighted_loss": _weighted_loss,
}
# What only the extension has.
CPP_ALONE = ("path_attention", "path_attention_backward")
for _name, _eager in EAGER.items():
    _LIBRARY.impl(_name, _eager, "CompositeExplicitAutograd")


def _writes_only(*_arguments) -> None:
    return None


for _name in ("row_pass", "row_pass_", "tile_pass", "tile_pass_"):
    torch.library.register_fake(f"amopo::{_name}", _writes_only, lib=_LIBRARY)


@torch.library.register_fake("amopo::segment_moments", lib=_LIBRARY)
def _fake_moments(logps, starts, stops):
    return tuple(logps.new_empty(starts.shape) for _ in range(4))


@torch.library.register_fake("amopo::weighted_loss", lib=_LIBRARY)
def _fake_loss(logps, starts, stops, weights, given, sample_ids, seed, step, beta, gamma, pooled, present=None):
    samples, objectives, _ = starts.shape
    pair, logged = (samples, objectives, 2), (samples, len(LOGGED), objectives)
    shapes = ((samples,), (samples, objectives), pair, pair, pair, logged)
    return tuple(logps.new_empty(shape) for shape in shapes)


@torch.library.register_fake("amopo::path_attention", lib=_LIBRARY)
def _fake_attention(q, k, v, starts_q, starts_k, scaling, window):
    return q.new_empty((*q.shape[:2], v.shape[2])), q.new_empty(q.shape[:2], dtype=torch.float32)


@torch.library.register_fake("amopo::path_attention_backward", lib=_LIBRARY)
def _fake_attention_backward(grad, q, k, v, out, lse, starts_q, starts_k, scaling, window):
    return tuple(torch.empty(x.shape, dtype=x.dtype, device=x.device) for x in (q, k, v))


def _keep_attention(ctx, inputs, output) -> None:
    q, k, v, starts_q, starts_k, ctx.scaling, ctx.window = inputs
    ctx.mark_non_differentiable(output[1])
    ctx.save_for_backward(q, k, v, *output, starts_q, starts_k)


def _attention_gradients(ctx, grad, _):
    given = torch.ops.amopo.path_attention_backward(grad, *ctx.saved_tensors, ctx.scaling, ctx.window)
    return (*given, None, None, None, None)


torch.library.register_autograd(
    "amopo::path_attention", _attention_gradients, setup_context=_keep_attention, lib=_LIBRARY
)


def _no_second_gradient(ctx, *grads):
    raise RuntimeError("amopo::path_attention has no gradients of gradients: its backward cannot be differentiated")


torch.library.register_autograd("amopo::path_attention_backward", _no_second_gradient, lib=_LIBRARY)
