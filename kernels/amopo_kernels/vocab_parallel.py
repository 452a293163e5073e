"""A head whose vocabulary is sharded over a process group: each rank holds `weight[V / P, H]`, targets are global.

Per row chunk three all-reduces of `[C]` vectors: MAX of the row maximum, SUM of the target's logit (only its owner has
one), SUM of the mass S. All ranks then agree on r, the clamp and S; only the owner writes `G_y = -S`. dH is summed over
ranks, dW stays local. Ranks hold shards of equal size, in rank order (pad the vocabulary as Megatron does; padded rows
need a bias of -inf). Hidden states are the same on all ranks.

Another size on another rank raises on all of them (`check_equal_rows`); the order of the shards does not show.
"""

from __future__ import annotations

from dataclasses import dataclass
from weakref import WeakKeyDictionary

import torch
import torch.distributed as dist
from torch import Tensor

from amopo_kernels import dispatch
from amopo_kernels.row_pass import CLAMP, RowState, Transform

# group -> sizes of a shard that all its ranks are known to have had in common
_EQUAL: WeakKeyDictionary[dist.ProcessGroup, set[int]] = WeakKeyDictionary()


def check_equal_rows(weight: Tensor, group: dist.ProcessGroup) -> None:
    """Raise on every rank unless all of them hold as many rows of the vocabulary as `weight [V / P, H]`.

    An all-reduce of two integers, at every call: a rank that went by what it remembers would leave one that has other
    rows by now waiting alone. The host reads them at the first call with this group and size (ValueError); later an
    assertion that does not stop a CUDA stream does (RuntimeError on a CPU). Nothing is compared while tracing.
    """
    if torch.compiler.is_compiling():
        return
    rows, ranks = weight.shape[0], group.size()
    extremes = weight.new_full((2,), rows, dtype=torch.int64)  # filled on the device: a list would be copied there
    if type(extremes) is not Tensor:  # a fake one
        return
    extremes[1].neg_()
    dist.all_reduce(extremes, dist.ReduceOp.MAX, group=group)
    remedy = (
        f"so that targets would meet the wrong rows; pad the vocabulary to a multiple of {ranks} "
        f"(model.resize_token_embeddings(pad_to_multiple_of={ranks}), or rows of zeros with a bias of -inf) and give "
        "each rank as many rows"
    )
    known = _EQUAL.setdefault(group, set())
    if rows in known:
        message = (
            f"linear_logprobs: other ranks of process_group hold other than {rows} rows of the vocabulary, {remedy}"
        )
        torch._assert_async(extremes.sum() == 0, message)
        return
    most, least = extremes[0].item(), -extremes[1].item()
    if most != least:
        raise ValueError(
            f"linear_logprobs: the ranks of process_group hold unequal shards of the vocabulary, from {least} to "
            f"{most} rows (this one {rows}), {remedy}"
        )
    known.add(rows)


@dataclass(frozen=True)
class VocabShard:
    """This rank's part of the vocabulary; `group=None` is the whole of it."""

    group: dist.ProcessGroup | None
    start: int
    size: int

    @classmethod
    def of(cls, group_name: str, size: int) -> VocabShard:
        if not group_name:
            return cls(None, 0, size)
        group = dist.distributed_c10d._resolve_process_group(group_name)
        return cls(group, dist.get_rank(group) * size, size)

    @property
    def is_whole(self) -> bool:
        return self.group is None

    def local_targets(self, targets: Tensor) -> Tensor:
        """Relative to this shard; values outside `[0, size)` belong to another rank."""
        return targets if self.start == 0 else targets - self.start

    def sum_(self, tensor: Tensor) -> None:
        if self.group is not None and tensor.numel():
            dist.all_reduce(tensor, group=self.group)

    def row_pass(
        self,
        logits: Tensor,
        targets: Tensor,
        bias: Tensor | None,
        transform: Transform,
        *,
        logp: Tensor,
        state: RowState,
        out: Tensor | None,
        half_range: bool,
        block_rows: int,
    ) -> None:
        """`row_pass` with the three all-reduces in it; reads the logits once more than the whole-vocabulary form."""
        owned = (targets >= 0) & (targets < self.size)
        column = targets.clamp(0, self.size - 1)[:, None]
        row_max, z_target = torch.empty_like(logp), torch.empty_like(logp)
        for rows, z in self._blocks(logits, bias, transform, logp.dtype, block_rows):
            row_max[rows] = z.amax(1)
            z_target[rows] = torch.where(owned[rows], z.gather(1, column[rows])[:, 0], 0.0)
        dist.all_reduce(row_max, dist.ReduceOp.MAX, group=self.group)
        dist.all_reduce(z_target, group=self.group)
        clamped = row_max - z_target > CLAMP
        state.reference.copy_(torch.where(clamped, row_max - CLAMP, z_target))
        for rows, z in self._blocks(logits, bias, transform, logp.dtype, block_rows):
            exponentials = z.sub_(state.reference[rows, None]).exp_()
            kept = torch.where(owned[rows, None], 0.0, exponentials.gather(1, column[rows]))
            state.mass[rows] = exponentials.scatter_(1, column[rows], kept).sum(1)
        dist.all_reduce(state.mass, group=self.group)
        e_target = torch.exp(z_target - state.reference)
        total = e_target + state.mass
        logp.copy_(torch.where(clamped, z_target - state.reference - total.log(), -torch.log1p(state.mass)))
        state.factor.copy_(total.reciprocal())
        if out is not None:
            dispatch.tile_pass(
                logits, targets, bias, transform, state=state, out=out, half_range=half_range, block_rows=block_rows
            )

    @staticmethod
    def _blocks(logits: Tensor, bias: Tensor | None, transform: Transform, dtype: torch.dtype, block_rows: int):
        """(rows, transformed copy of their logits)."""
        for start in range(0, logits.shape[0], block_rows):
            rows = slice(start, start + block_rows)
            yield rows, transform.apply_(logits[rows].to(dtype, copy=True), bias)
