"""Response rows of padded batches: which hidden rows predict which tokens, and which row belongs to which sequence.

A padded batch is `hidden [rows, length, H]` with labels `[rows, length]`, one row per (sample, objective, response).
`select_rows` finds the positions that predict a response token (one `nonzero`), `sequence_rows` says where each
(sample, objective, chosen | rejected) stands among the rows; `padded_sequences` is both, oriented and checked.

Orders of rows, for B samples and K objectives (c = chosen, r = rejected):

    objective_major   for each objective: c of all samples, then r of all samples   (the released AMoPO collator)
    sample_major      for each sample: c, r of objective 0, c, r of objective 1, ...
    chosen_first      c of all, then r of all; inside a half sample by sample       (TRL; K = 1: its pairs)
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from amopo.sequence_parallel import lengths_over_ranks

ORDERS = ("objective_major", "sample_major", "chosen_first")


class PaddedRows(NamedTuple):
    """index int64 `[N]` into the flattened hidden rows, target int64 `[N]`, offsets int64 `[rows + 1]`."""

    index: Tensor
    target: Tensor
    offsets: Tensor


class PaddedSequences(NamedTuple):
    """What a padded batch asks of a loss.

    rows: its response rows. sequences: int64 `[B, K, 2]`, the padded row of each sequence. preferred: the same with
    the response that the objective prefers first. present: bool `[B, K]`, where an objective has a preference, or None
    (everywhere).
    """

    rows: PaddedRows
    sequences: Tensor
    preferred: Tensor
    present: Tensor | None


def checked_labels(labels: Tensor | None, shift_labels: Tensor | None, num_objectives: int | None) -> Tensor:
    """The one of the two that was given; raises TypeError for another kind, ValueError without `num_objectives`."""
    given = labels if labels is not None else shift_labels
    if not isinstance(given, Tensor):
        raise TypeError(f"labels must be a tensor [rows, length], got {type(given).__name__}")
    if given.dtype not in (torch.int64, torch.int32, torch.int16):
        raise TypeError(f"labels must be integers (int64, int32 or int16), got {given.dtype}")
    if num_objectives is None:
        raise ValueError("num_objectives (K) is needed with labels: rows = 2 x K x samples")
    return given


def padded_sequences(
    labels: Tensor,
    device: torch.device,
    *,
    shifted: bool,
    num_objectives: int,
    order: str,
    row_ids: Tensor | None,
    signs: Tensor | None,
    ignore_index: int,
    vocab: int | None,
    sequence_parallel: Any,
    validate: bool,
) -> PaddedSequences:
    """Rows and sequences of labels `[rows, length]`; their values are looked at where that waits for no device.

    Args:
        device: of the hidden states or log-probs, where `sequences` are wanted. shifted, ignore_index: see
            `select_rows`. order, row_ids: see `sequence_rows`. signs: see `orient_rows`. vocab: see `check_rows`.
        sequence_parallel: process group whose ranks hold parts of these sequences. validate: look at the values even
            if that waits for a device.
    """
    sequences = sequence_rows(labels.shape[0], num_objectives, order, row_ids, device)
    preferred, present = (sequences, None) if signs is None else orient_rows(sequences, signs)
    rows = select_rows(labels, shifted=shifted, ignore_index=ignore_index)
    if validate or labels.device.type == "cpu":
        check_rows(rows, sequences, vocab, lengths=_lengths(rows, device, sequence_parallel, validate))
    return PaddedSequences(rows, sequences, preferred, present)


def _lengths(rows: PaddedRows, device: torch.device, sequence_parallel: Any, validate: bool) -> Tensor | None:
    """int64 `[rows]`: response tokens of the padded rows, or None where counting them would wait for the device."""
    lengths = rows.offsets.diff()
    if sequence_parallel is None:
        return lengths
    # A rank may hold the prompt of a sequence alone: only its group knows whether it has a response.
    return lengths_over_ranks(lengths.to(device), sequence_parallel) if validate or device.type == "cpu" else None


def sequence_rows(
    num_rows: int, num_objectives: int, order: str, row_ids: Tensor | None, device: torch.device | None = None
) -> Tensor:
    """int64 `[B, K, 2]` on `device`: the padded row of each sequence; `row_ids` overrides `order`."""
    if isinstance(num_objectives, bool) or not isinstance(num_objectives, int) or num_objectives < 1:
        raise ValueError(f"num_objectives must be a positive integer, got {num_objectives!r}")
    if row_ids is not None:
        if not isinstance(row_ids, Tensor) or row_ids.dtype not in (torch.int64, torch.int32):
            kind = getattr(row_ids, "dtype", type(row_ids).__name__)
            raise TypeError(f"row_ids must be an integer tensor [B, K, 2], got {kind}")
        if row_ids.dim() != 3 or tuple(row_ids.shape[1:]) != (num_objectives, 2):
            raise ValueError(f"row_ids must be [B, K={num_objectives}, 2], got {tuple(row_ids.shape)}")
        if row_ids.numel() != num_rows:
            raise ValueError(f"row_ids names {row_ids.numel()} rows but the batch has {num_rows}; each must occur once")
        if row_ids.device.type == "cpu" and not torch.equal(row_ids.flatten().sort().values, torch.arange(num_rows)):
            raise ValueError(f"row_ids must hold every row 0..{num_rows - 1} exactly once")
        return row_ids.to(device=device, dtype=torch.int64, non_blocking=True)
    if num_rows == 0 or num_rows % (2 * num_objectives):
        raise ValueError(
            f"{num_rows} rows are not divisible by 2 x {num_objectives} objectives: each sample needs a chosen and a "
            "rejected row per objective"
        )
    samples = num_rows // (2 * num_objectives)
    rows = torch.arange(num_rows, device=device)  # made there: a copy from the host would wait
    if order == "objective_major":
        return rows.view(num_objectives, 2, samples).permute(2, 0, 1)
    if order == "sample_major":
        return rows.view(samples, num_objectives, 2)
    if order == "chosen_first":
        return rows.view(2, samples, num_objectives).permute(1, 2, 0)
    raise ValueError(f"order must be one of {', '.join(ORDERS)}, got {order!r}")


def orient_rows(sequences: Tensor, signs: Tensor) -> tuple[Tensor, Tensor]:
    """`sequences` with the two rows swapped where the sign is -1, and bool `[B, K]`: where it is not 0.

    Args:
        sequences: int64 `[B, K, 2]`. signs: integers `[B, K]` of +1, -1 and 0, not all 0 in a sample.
    Raises:
        TypeError, ValueError: of another kind or shape, or (on a CPU; on CUDA a device assertion) other values.
    """
    if not isinstance(signs, Tensor) or signs.is_floating_point() or signs.is_complex() or signs.dtype == torch.bool:
        kind = getattr(signs, "dtype", type(signs).__name__)
        raise TypeError(f"signs must be an integer tensor [B, K] of +1, -1 and 0, got {kind}")
    if tuple(signs.shape) != tuple(sequences.shape[:2]):
        raise ValueError(f"signs must be [B, K] = {tuple(sequences.shape[:2])}, got {tuple(signs.shape)}")
    known, decided = ((signs >= -1) & (signs <= 1)).all(), (signs != 0).any(1).all()
    if signs.device.type == "cpu":
        if not bool(known):
            raise ValueError(f"signs must be +1, -1 or 0, got {signs[(signs < -1) | (signs > 1)][0].item()}")
        if not bool(decided):
            sample = int((signs != 0).any(1).logical_not().nonzero()[0])
            raise ValueError(f"sample {sample}: all signs are 0, so no objective has a preference; drop the sample")
    torch._assert_async(known & decided, "signs must be +1, -1 or 0, and not all 0 in a sample")
    signs = signs.to(sequences.device, non_blocking=True)
    return torch.where((signs < 0)[..., None], sequences.flip(-1), sequences), signs != 0


def select_rows(labels: Tensor, *, shifted: bool, ignore_index: int) -> PaddedRows:
    """Positions with a label, by one `nonzero` (the only host sync of a padded call on CUDA).

    Args:
        labels: integers `[rows, length]`. shifted: position t already holds the token that position t predicts;
            otherwise position t holds its own token, and row t predicts the label at t + 1.
    """
    rows, length = labels.shape
    if not shifted:
        following = torch.full_like(labels, ignore_index)
        following[:, :-1] = labels[:, 1:]
        labels = following
    wanted = labels != ignore_index
    offsets = torch.zeros(rows + 1, dtype=torch.int64, device=labels.device)
    torch.cumsum(wanted.sum(1), dim=0, out=offsets[1:])
    index = wanted.flatten().nonzero()[:, 0]
    return PaddedRows(index, labels.reshape(-1).index_select(0, index).to(torch.int64), offsets)


def label_places(rows: PaddedRows, length: int, columns: int, *, shifted: bool) -> Tensor:
    """int64 `[N]`: where log-probs of `rows` stand in a flattened `[rows, columns]`, for labels of `length` columns.

    `columns = length`: at the place of the label. `columns = length - 1`: one less, as TRL returns them (unshifted).
    """
    if columns == length:
        return rows.index if shifted else rows.index + 1
    return rows.index - rows.index // length


def check_rows(rows: PaddedRows, sequences: Tensor, vocab: int | None, *, lengths: Tensor | None) -> None:
    """Look at the values: every sequence has a response token and every target lies in the vocabulary.

    Reads values on the host: free on a CPU, a sync on CUDA (there only with `validate=True`).

    Args:
        lengths: int64 `[rows]`, response tokens of each padded row, on all ranks together where they share its
            sequence; None: not known, and not looked at.
    """
    empty = [] if lengths is None else (lengths[sequences.to(lengths.device)] == 0).nonzero().tolist()
    if empty:
        sample, objective, side = empty[0]
        raise ValueError(
            f"sample {sample}, objective {objective}: the {('chosen', 'rejected')[side]} sequence (row "
            f"{int(sequences[sample, objective, side])}) has no response token; every label is ignored. Drop the "
            "sample or raise the truncation length"
        )
    if vocab is None:
        return
    outside = ((rows.target < 0) | (rows.target >= vocab)).nonzero().flatten()
    if len(outside):
        position = int(outside[0])
        row = int(torch.searchsorted(rows.offsets, position, right=True)) - 1
        sample, objective, side = (sequences == row).nonzero()[0].tolist()
        raise ValueError(
            f"sample {sample}, objective {objective}: label {int(rows.target[position])} of the "
            f"{('chosen', 'rejected')[side]} sequence (row {row}) lies outside the vocabulary [0, {vocab}); check that "
            "tokenizer and model belong together"
        )
