"""How much memory the head takes, and how it is cut to fit: the one formula of planner, errors and tests.

`plan_workspace` turns (shape, dtype, budget, which gradients) into a `Plan`: rows per logits chunk, rows whose G is
kept for the backward, vocabulary columns per backward tile. `workspace_bytes` is its total. Nothing is probed and
nothing depends on free memory: the same arguments give the same plan on every rank.

The budget bounds everything that grows with the vocabulary and lives only for this call: the logits chunk in its real
dtype, the kept G, its tiles, fp32 copies of weight tiles, the autocast copy of the weight. Outside it stand tensors of
the size of the input: `U = G W` and dH (`[N, H]`), the scaled rows q*h, and vectors of length N; `workspace_bytes`
counts these too. dW itself belongs to the caller. Notation: N rows, V vocabulary, H hidden, C rows per chunk.

    forward   kept * V * g  +  C * V * (l [+ g])  +  row-pass temporaries  [+ copies]
    backward  kept * V * g  +  N * T * o  [+ spill * T * l]  +  row-pass temporaries  [+ copies]

with g, l, o the item sizes of stored G, logits and product operands, and T the columns per tile; V counts the padding
of a row to `row_stride`.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from amopo_kernels.checks import check_budget
from amopo_kernels.products import Products, choose_products

GIB = 1 << 30
# A row pass touches its block several times: 8 MiB stays in a CPU's L3; on a GPU launches matter more than caches.
_BLOCK_TARGET = {"cpu": 8 << 20}
_BLOCK_TARGET_DEVICE = 256 << 20
_MAX_CHUNK_ROWS = {"cpu": 1024}
_MAX_CHUNK_ROWS_DEVICE = 8192
_MAX_CAST_COLS = 16384
# Rows of logits and G start at multiples of this many elements: an odd stride means scalar stores and slow products.
# A short vocabulary, whose rows are a few cache lines, is left alone.
_STRIDE = 128
_SHORT_VOCAB = 8 * _STRIDE
# Products on a GPU work in tiles of 128 rows: 597 rows cost as much as 640.
_ROW_MULTIPLE = {"cpu": 1}
_ROW_MULTIPLE_DEVICE = 128
# Where G stands whole, tiles need no memory. On a CPU dW takes 1.47 s in tiles of 8192 columns, 1.63 s in one product
# (2048 x 896 x 151936, bf16, AVX-512, two cores): a tile's output stays in the cache. On a GPU launches count.
_WHOLE_TILE_COLS = {"cpu": 8192}


@dataclass(frozen=True)
class Plan:
    """Sizes for one call; bytes are peaks beyond inputs and dW."""

    chunk_rows: int
    kept_rows: int
    block_rows: int
    cast_cols: int
    tile_cols: int
    forward_bytes: int
    backward_bytes: int

    @property
    def total_bytes(self) -> int:
        return max(self.forward_bytes, self.backward_bytes)


def default_budget(hidden_size: int, vocab_size: int, *, frozen_head: bool) -> int:
    """Bytes of transient memory granted when none is given: `max(4 * H * V, 1 GiB)`, 512 MiB for a frozen head."""
    return GIB // 2 if frozen_head else max(4 * hidden_size * vocab_size, GIB)


def row_stride(vocab_size: int) -> int:
    """Elements from one row of logits, or of G, to the next."""
    return vocab_size if vocab_size < _SHORT_VOCAB else -(-vocab_size // _STRIDE) * _STRIDE


def _round_down(value: int, multiple: int) -> int:
    return value - value % multiple if value >= multiple else value


def plan_workspace(
    shape: tuple[int, int, int],
    products: Products,
    *,
    budget: int | None,
    need_hidden_grad: bool,
    need_weight_grad: bool,
    softcap: bool = False,
    cast_weight: bool = False,
    lora_rank: int = 0,
    device_type: str = "cpu",
) -> Plan:
    """Cut the work of one head call so that its transient memory stays within `budget` bytes.

    Args:
        shape: (N rows, H hidden size, V vocabulary).
        cast_weight: the weight is stored in another dtype and copied once per call (autocast). lora_rank: r of an
            adapter on the head.
    Raises:
        ValueError: the budget does not hold one row; the message names the smallest that does.
    """
    rows, hidden, vocab = shape
    if budget is None:
        budget = default_budget(hidden, vocab, frozen_head=not need_weight_grad)
    check_budget(budget)

    g, l, acc = products.compute.itemsize, products.logits.itemsize, products.accumulate.itemsize
    upcast, mixed = products.policy == "upcast", products.policy == "mixed"
    # Copies of a block: in the accumulation dtype and of the damping, by the eager row pass; of the adapter's logits.
    block_item = acc * (int(l != acc) + int(softcap)) + (l if lora_rank else 0)
    stride = row_stride(vocab)
    row_multiple = _ROW_MULTIPLE.get(device_type, _ROW_MULTIPLE_DEVICE)
    weight_copy = vocab * hidden * g if cast_weight else 0
    need_g = need_hidden_grad or need_weight_grad
    # A chunk row: its logits, a separate G where the logits have another dtype, fp32 copies of its hidden states.
    chunk_row = stride * l + (stride * g if mixed and need_g else 0) + (2 * hidden * 4 if upcast else 0)
    # A backward column: its G in product dtype, recomputed logits beside it, copies of weight and dW columns.
    operand = products.operand.itemsize
    tile_col = rows * operand + (rows * l if mixed else 0) + (2 * hidden * 4 if upcast else hidden * g)
    if products.exact_half:  # fp32 result of the product, and on a CPU fp32 copies of its operands
        tile_col += hidden * 4 + rows * 4

    def fixed(block_rows: int, cast_cols: int) -> tuple[int, int]:
        return weight_copy + (cast_cols * hidden * 4 if upcast else 0), block_rows * vocab * block_item

    smallest_cast, smallest_block = fixed(1, 1)
    smallest = smallest_cast + smallest_block + max(chunk_row, tile_col if need_weight_grad else 0)
    if budget < smallest:
        raise ValueError(
            f"budget={budget} bytes is too small for one row: {rows} rows x {hidden} hidden x {vocab} vocabulary in "
            f"{products.compute} need at least budget={smallest}"
        )

    available = budget - weight_copy
    block_target = min(_BLOCK_TARGET.get(device_type, _BLOCK_TARGET_DEVICE), available // 8)
    block_rows = max(1, block_target // (vocab * max(acc, block_item)))
    cast_cols = max(1, min(vocab, _MAX_CAST_COLS, available // 8 // (hidden * 4))) if upcast else vocab
    max_chunk = max(1, min(rows, _MAX_CHUNK_ROWS.get(device_type, _MAX_CHUNK_ROWS_DEVICE)))
    cast_bytes, block_bytes = fixed(block_rows, cast_cols)
    if cast_bytes + block_bytes + chunk_row > budget or (
        need_weight_grad and weight_copy + block_bytes + tile_col > budget
    ):
        block_rows, cast_cols = 1, 1
        cast_bytes, block_bytes = fixed(1, 1)
    room = budget - cast_bytes - block_bytes

    if not need_weight_grad:
        chunk_rows, kept, tile_cols = min(max_chunk, _round_down(room // chunk_row, row_multiple)), 0, vocab
        forward = cast_bytes + block_bytes + chunk_rows * chunk_row
        backward = 0
    else:
        kept_row = stride * g
        # In the native policy kept rows are their own logits chunk: the product writes where G will stay.
        chunk = max(1, min(max_chunk, _round_down(room // 4 // chunk_row, row_multiple)))
        chunk_rows = 0 if products.policy == "native" else chunk
        in_one_product = not (upcast or cast_weight or products.exact_half)
        tile_needed = 0 if in_one_product else tile_col
        keeps_all = (
            rows * kept_row + chunk_rows * chunk_row <= room
            and weight_copy + rows * kept_row + block_bytes + tile_needed <= budget
        )
        if keeps_all:
            kept = rows
        else:
            chunk_rows = chunk
            tile_reserve = max(tile_col, (budget - weight_copy) // 4)
            spare = min(room - chunk_rows * chunk_row, budget - weight_copy - block_bytes - tile_reserve)
            kept = min(rows, _round_down(max(0, spare // kept_row), row_multiple))
        tile_room = budget - weight_copy - block_bytes - kept * kept_row
        whole = kept == rows and in_one_product
        whole_cols = min(vocab, _WHOLE_TILE_COLS.get(device_type, vocab))
        tile_cols = whole_cols if whole else max(1, min(vocab, _round_down(tile_room // tile_col, _STRIDE)))
        forward = cast_bytes + block_bytes + kept * kept_row + chunk_rows * chunk_row
        backward = weight_copy + kept * kept_row + (0 if whole else block_bytes + tile_cols * tile_col)

    vectors = 12 * rows * max(acc, 4) + 4 * rows * lora_rank * max(acc, operand)
    saved = rows * hidden * g if need_hidden_grad else 0
    scaled = rows * hidden * (g * int(need_hidden_grad) + operand * int(need_weight_grad))  # dH and q * h
    return Plan(
        chunk_rows=chunk_rows,
        kept_rows=kept,
        block_rows=block_rows,
        cast_cols=cast_cols,
        tile_cols=tile_cols,
        forward_bytes=forward + saved + vectors,
        backward_bytes=backward + saved + vectors + scaled,
    )


def workspace_bytes(
    shape: tuple[int, int, int],
    dtype: torch.dtype,
    budget: int | None = None,
    frozen: bool = False,
    *,
    frozen_body: bool = False,
    logits_dtype: torch.dtype | str | None = None,
    softcap: bool = False,
    autocast_weight: bool = False,
    lora_rank: int = 0,
    device: str | torch.device = "cpu",
) -> int:
    """Peak bytes that `linear_logprobs` takes beyond its inputs and dW, forward and backward.

    Args:
        shape: (N response rows, H hidden size, V vocabulary). dtype: of hidden states and weight (the autocast dtype
            under autocast). budget: bytes for what grows with the vocabulary (default: `max(4 * H * V, 1 GiB)`, or
            512 MiB with a frozen head). frozen: the head gets no gradient. frozen_body: the hidden states get none.
            autocast_weight: the weight is stored in fp32 and copied to `dtype`. lora_rank: r of an adapter on the head.
    Raises:
        ValueError: a size is not positive, or the budget does not hold one row.
    """
    rows, hidden, vocab = (int(size) for size in shape)
    if rows < 0 or hidden <= 0 or vocab <= 0:
        raise ValueError(f"shape must be (rows >= 0, hidden > 0, vocabulary > 0), got {tuple(shape)}")
    device = torch.device(device)
    plan = plan_workspace(
        (rows, hidden, vocab),
        choose_products(dtype, device, logits_dtype),
        budget=budget,
        need_hidden_grad=not frozen_body,
        need_weight_grad=not frozen or lora_rank > 0,
        softcap=softcap,
        cast_weight=autocast_weight,
        lora_rank=lora_rank,
        device_type=device.type,
    )
    return plan.total_bytes
