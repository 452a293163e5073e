"""The drop-in loss: hidden states, lm_head and labels in, AMoPO's loss and metrics out.

    fused_loss(hidden[rows, length, H], lm_head, labels[rows, length], num_objectives=K) -> FusedLoss
    fused_loss(hidden[tokens, H],       lm_head, layout=TreeLayout)                      -> FusedLoss

Only response rows enter the head; no `[tokens, V]` tensor is stored (see `amopo_kernels.linear_logprobs`). The
log-probs come out once and the objective is a function of their per-sequence statistics, so `loss_from_logps` takes
log-probs from elsewhere (a patched model, TRL's fused head) to the same loss.

Gradients flow into hidden and lm_head; the weights alpha are constants. One loss, any number of backwards.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from amopo.head import head_logps, vocab_size
from amopo.packed import fan_out, is_oriented, packed_rows, sequences_of
from amopo.packing.validate import check_layout
from amopo.padded import PaddedSequences, checked_labels, label_places, padded_sequences
from amopo.preference_loss import FusedLoss, LossSettings, Objective, Weights, loss_from_tokens
from amopo.value_checks import check_logps, check_values

if TYPE_CHECKING:
    from amopo.packing.layout import TreeLayout


def fused_loss(
    hidden: Tensor,
    lm_head: nn.Module | Tensor,
    labels: Tensor | None = None,
    *,
    shift_labels: Tensor | None = None,
    layout: TreeLayout | None = None,
    num_objectives: int | None = None,
    order: str = "objective_major",
    row_ids: Tensor | None = None,
    signs: Tensor | None = None,
    beta: float = 0.8,
    gamma: float = 0.0,
    objective: Objective = "amopo",
    weights: Weights = "gaussian",
    pooled: str = "union",
    preset: str | None = None,
    normalizer: float | Tensor | None = None,
    sample_ids: Tensor | None = None,
    seed: int = 0,
    step: int | None = None,
    ignore_index: int = -100,
    logit_scale: float | None = None,
    softcap: float | None = None,
    logits_dtype: torch.dtype | str | None = None,
    budget: int | None = None,
    tensor_parallel: Any = None,
    sequence_parallel: Any = None,
    validate: bool = False,
) -> FusedLoss:
    """AMoPO's loss from last hidden states, without logits (Liu et al. 2025, Eq. 9 and 10).

    Args:
        hidden: last hidden states after the final norm: `[rows, length, H]` with labels, `[tokens, H]` (or
            `[1, tokens, H]`) with a layout. lm_head: the module (called through, right under DDP, ZeRO-3, FSDP2), or a
            weight `[V, H]`.
        labels: `[rows, length]`, the token ids themselves (the shift happens here). shift_labels: `[rows, length]`,
            already shifted. layout: of a packed row. Exactly one of the three; `ignore_index` marks no response.
        num_objectives: K, for padded batches. order: of padded rows, see `amopo.padded`; `row_ids` int64 `[B, K, 2]`
            overrides it.
        signs: integers `[B, K]`, for padded batches (a layout brings its own): +1 where objective k prefers the chosen
            response, -1 where it prefers the rejected one, 0 where neither: that objective is then absent from the
            sample, with weight 0, and the weights are those of the others. Default: all +1.
        beta, gamma: scale and margin of the log-sigmoid terms. objective: registered name or function.
        weights: "gaussian", "mean", "uniform", a tensor `[K]`/`[B, K]`, or a function; see `amopo.weights`.
        pooled: "union" (Eq. 10) or "sum" (released code) of the two responses' token probabilities.
        preset: "official" for the released trainer's arithmetic (it fixes gamma, weights, pooling and reduction).
        normalizer: denominator of the loss (default: this call's samples), for means over a whole optimizer step.
        sample_ids: int64 `[B]`, keys of the noise (default: row index with the rank mixed in). seed: of the noise.
            step: of the noise (default: drawn from torch's CPU generator, so `torch.manual_seed` reproduces a run).
        logit_scale, softcap: what the model does to its logits. logits_dtype, budget: see `linear_logprobs`.
        tensor_parallel: process group whose ranks hold rows of the head. sequence_parallel: process group whose ranks
            hold parts of these sequences (`amopo.packing.shard`); it needs `sample_ids` and `step`.
        validate: look at all values on the host and name the sample that is wrong (a sync on CUDA).
    Raises:
        ValueError, TypeError: arguments, shapes or values that cannot be right; RuntimeError for NaN or inf on a CPU.
    """
    settings = LossSettings(beta, gamma, objective, weights, pooled, preset, normalizer, seed, step, sequence_parallel)
    settings.check()
    head_options = {
        "logit_scale": logit_scale, "softcap": softcap, "logits_dtype": logits_dtype, "budget": budget,
        "tensor_parallel": tensor_parallel,
    }  # fmt: skip
    _check_form(settings, labels, shift_labels, layout, signs)
    # a shard of the head says nothing of the whole vocabulary
    vocabulary = None if tensor_parallel is not None else vocab_size(lm_head)
    if layout is not None:
        if validate:
            check_layout(layout, vocab=vocabulary, is_part=sequence_parallel is not None)
        rows = packed_rows(hidden, layout, num_objectives, vocabulary)
        if validate:
            of_tokens = rows if layout.fan_out is None else rows.index_select(0, layout.fan_out)
            check_values(of_tokens, layout.offsets, sequences_of(layout))
        logps = head_logps(lm_head, rows, layout.row_target, **head_options)
        if validate:
            check_logps(fan_out(logps, layout), layout.offsets, sequences_of(layout))
        return _loss_of_layout(logps, layout, settings, sample_ids)
    given = checked_labels(labels, shift_labels, num_objectives)
    if hidden.dim() != 3 or tuple(given.shape) != tuple(hidden.shape[:2]):
        raise ValueError(
            f"hidden must be [rows, length, H] and labels [rows, length], got {tuple(hidden.shape)} and "
            f"{tuple(given.shape)}"
        )
    padded = padded_sequences(
        given, hidden.device, shifted=labels is None, num_objectives=num_objectives, order=order, row_ids=row_ids,
        signs=signs, ignore_index=ignore_index, vocab=vocabulary, sequence_parallel=sequence_parallel,
        validate=validate,
    )  # fmt: skip
    index, target, offsets = padded.rows
    rows = hidden.reshape(-1, hidden.shape[-1]).index_select(0, index.to(hidden.device, non_blocking=True))
    if validate:
        check_values(rows, offsets, padded.sequences)
    logps = head_logps(lm_head, rows, target.to(hidden.device, non_blocking=True), **head_options)
    if validate:
        check_logps(logps, offsets, padded.sequences)
    return _loss_of_padded(logps, padded, settings, sample_ids)


def loss_from_logps(
    logps: Tensor,
    layout: TreeLayout | None = None,
    *,
    labels: Tensor | None = None,
    shift_labels: Tensor | None = None,
    num_objectives: int | None = None,
    order: str = "objective_major",
    row_ids: Tensor | None = None,
    signs: Tensor | None = None,
    ignore_index: int = -100,
    beta: float = 0.8,
    gamma: float = 0.0,
    objective: Objective = "amopo",
    weights: Weights = "gaussian",
    pooled: str = "union",
    preset: str | None = None,
    normalizer: float | Tensor | None = None,
    sample_ids: Tensor | None = None,
    seed: int = 0,
    step: int | None = None,
    sequence_parallel: Any = None,
    validate: bool = False,
) -> FusedLoss:
    """The loss from log-probs that were made elsewhere: a patched model, or another library's fused head.

    Args:
        logps: with a layout `[R]`, one per row of it (`layout.row_index`, `layout.row_target`). With labels
            `[rows, length]`, at the places of the labels (`amopo.patch`), or `[rows, length - 1]`, without the first
            column of unshifted labels (TRL). Values where the label is `ignore_index` are not read.
        layout, labels, shift_labels: exactly one; labels as in `fused_loss`. The other arguments too are those of
            `fused_loss`; signs come with the layout, or as `signs` beside labels.
    Raises:
        TypeError: what is no tensor of float32 or float64; ValueError: shapes that do not fit.
    """
    settings = LossSettings(beta, gamma, objective, weights, pooled, preset, normalizer, seed, step, sequence_parallel)
    settings.check()
    _check_made(logps)
    _check_form(settings, labels, shift_labels, layout, signs)
    if layout is None:
        given = checked_labels(labels, shift_labels, num_objectives)
        shifted = labels is None
        columns = [given.shape[-1]] if shifted else [given.shape[-1], given.shape[-1] - 1]
        if given.dim() != 2 or logps.dim() != 2 or logps.shape[0] != given.shape[0] or logps.shape[1] not in columns:
            raise ValueError(
                f"logps must be [{given.shape[0]}, {' or '.join(map(str, columns))}] for labels {tuple(given.shape)}, "
                f"got {tuple(logps.shape)}"
            )
        padded = padded_sequences(
            given, logps.device, shifted=shifted, num_objectives=num_objectives, order=order, row_ids=row_ids,
            signs=signs, ignore_index=ignore_index, vocab=None, sequence_parallel=sequence_parallel, validate=validate,
        )  # fmt: skip
        places = label_places(padded.rows, given.shape[1], logps.shape[1], shifted=shifted)
        tokens = logps.flatten().index_select(0, places.to(logps.device, non_blocking=True))
        if validate:
            check_logps(tokens, padded.rows.offsets, padded.sequences)
        return _loss_of_padded(tokens, padded, settings, sample_ids)
    if num_objectives is not None and num_objectives != layout.num_objectives:
        raise ValueError(f"num_objectives={num_objectives} but the layout has {layout.num_objectives}")
    if logps.dim() != 1 or logps.shape[0] != layout.row_index.shape[0]:
        expected = layout.row_index.shape[0]
        raise ValueError(f"logps must be [{expected}], one per row of the layout, got {tuple(logps.shape)}")
    if validate:
        check_layout(layout, is_part=sequence_parallel is not None)
        check_logps(fan_out(logps, layout), layout.offsets, sequences_of(layout))
    return _loss_of_layout(logps, layout, settings, sample_ids)


def _check_made(logps: Any) -> None:
    """Raise TypeError for what a patched model does not return."""
    if not isinstance(logps, Tensor):
        raise TypeError(
            f"logps must be a tensor of log-probs, got {type(logps).__name__}: is the model patched, and was its "
            "forward not replaced again since (by use_liger_kernel, for example)?"
        )
    if logps.dtype not in (torch.float32, torch.float64):
        raise TypeError(
            f"logps are {logps.dtype}, too coarse for sums over a response: a wrapper casts what the model returns "
            "(FSDP2: MixedPrecisionPolicy(output_dtype=None)); where they are made so, pass logps.float()"
        )


def _check_form(
    settings: LossSettings,
    labels: Tensor | None,
    shift_labels: Tensor | None,
    layout: TreeLayout | None,
    signs: Tensor | None,
) -> None:
    if sum(argument is not None for argument in (labels, shift_labels, layout)) != 1:
        raise ValueError("pass exactly one of layout, labels (unshifted) and shift_labels")
    if labels is not None and settings.sequence_parallel is not None:
        raise ValueError(
            "labels would be shifted inside each rank's piece of the sequences, and every piece would lose its first; "
            "shift whole sequences before they are cut, and pass shift_labels"
        )
    if signs is not None and layout is not None:
        raise ValueError("signs come with the layout: give them to TokenizedSample and pack; signs= is for padded rows")
    settings.check_signs(signs is not None or (layout is not None and is_oriented(layout)))


def _loss_of_padded(
    tokens: Tensor, padded: PaddedSequences, settings: LossSettings, sample_ids: Tensor | None
) -> FusedLoss:
    offsets, shape = padded.rows.offsets.to(tokens.device, non_blocking=True), tuple(padded.sequences.shape[:2])
    return loss_from_tokens(tokens, offsets, padded.preferred, shape, settings, sample_ids, padded.present)


def _loss_of_layout(logps: Tensor, layout: TreeLayout, settings: LossSettings, sample_ids: Tensor | None) -> FusedLoss:
    tokens = fan_out(logps, layout)
    shape = (layout.num_samples, layout.num_objectives)
    return loss_from_tokens(tokens, layout.offsets, layout.preferred, shape, settings, sample_ids, layout.present)
