"""Every Triton kernel in every configuration that the dispatcher starts compiles for sm_80 and sm_90, without spills.

Needs no GPU: Triton brings ptxas. What is compiled is what `launch` would have started, see `kernel_starts`.
"""

from __future__ import annotations

import functools
import itertools
import re
import subprocess
from pathlib import Path

import pytest
import torch
from torch import Tensor

triton = pytest.importorskip("triton")

from amopo_kernels.row_pass import RowState, Transform  # noqa: E402
from amopo_kernels.triton import gather, launch, mobt, row_pass, segments  # noqa: E402
from amopo_kernels.triton.configs import ARCHITECTURES, TABLE  # noqa: E402
from tests.kernels.kernel_starts import DIVISIBLE, Start, record, specialise  # noqa: E402

FP32, BF16, FP16 = torch.float32, torch.bfloat16, torch.float16
SHARED_LIMIT = {80: 163 * 1024, 90: 227 * 1024}
# (dtype of the logits, dtype of G or None where no gradient is wanted, in the range of fp16); equal dtypes: in place
FORMS = [
    (FP32, BF16, False),  # CUDA's default for bf16 models
    (FP32, FP16, True),  # and for fp16 models
    (FP32, FP32, False),
    (BF16, BF16, False),  # logits_dtype="input"
    (FP16, FP16, True),
    (FP32, None, False),
    (BF16, None, False),
    (FP16, None, True),
]
TRANSFORMS = [Transform(scale, cap) for scale in (None, 0.7) for cap in (None, 30.0)]
# (columns, elements between rows, elements before the first row)
LAYOUTS = {
    "even": (1024, 1024, 0),
    "padded": (1001, 1024, 0),  # an odd vocabulary in rows that are not
    "odd": (1001, 1001, 1),
    "one column": (1, 1, 1),  # the last tile of a vocabulary of 151937
}


def matrix(layout: str, dtype: torch.dtype, rows: int = 3) -> Tensor:
    columns, stride, skip = LAYOUTS[layout]
    return torch.zeros(rows * stride + skip, dtype=dtype)[skip:].as_strided((rows, columns), (stride, 1), skip)


def head_starts(layout: str) -> None:
    for (source, stored, half), transform, biased in itertools.product(FORMS, TRANSFORMS, (False, True)):
        if layout != "even" and len({value is None for value in transform} | {not biased}) == 2:
            continue  # elsewhere nothing or everything between product and softmax
        logits, targets = matrix(layout, source), torch.zeros(3, dtype=torch.int64)
        out = None if stored is None else logits if stored == source else matrix(layout, stored)
        bias = torch.zeros(logits.shape[1]) if biased else None
        state = RowState(*torch.zeros(3, 4)[:, :3].contiguous())
        common = {"state": state, "out": out, "half_range": half, "block_rows": 1}
        launch.row_pass(logits, targets, bias, transform, logp=torch.zeros(3), **common)
        if out is not None:
            launch.tile_pass(logits, targets, bias, transform, **common)


def row_starts(layout: str) -> None:
    for dtype in (FP32, BF16, FP16):
        x, index = matrix(layout, dtype), torch.tensor([0, 2, 2, 1])
        launch.scale_rows(x, torch.zeros(3), 1.0, matrix(layout, dtype))
        # the launcher makes the results of these two, contiguous
        launch.gather_rows(x, index)
        launch.scatter_rows(x, torch.tensor([0, 1, 2]), torch.tensor([0, 1, 3]))


def objective_starts() -> None:
    def start(objectives: int, weights: str, pooled: str, seed: int, masked: bool = False) -> None:
        edges = torch.arange(2 * 2 * objectives + 1)
        starts, stops = (edge.reshape(2, objectives, 2) for edge in (edges[:-1], edges[1:]))
        given = torch.zeros(2, objectives) if weights == "given" else None
        present = torch.ones(2, objectives, dtype=torch.bool) if masked else None
        launch.mobt(
            torch.zeros(int(edges[-1])), starts, stops, weights=weights, given=given, sample_ids=torch.arange(2),
            seed=seed, step=torch.tensor(1), beta=0.8, gamma=0.0, pooled=pooled,
            present=present,
        )  # fmt: skip

    sources = ("given", "gaussian", "mean", "uniform")
    for weights, pooled, masked in itertools.product(sources, ("union", "sum"), (False, True)):
        for objectives in (1, 2, 3, 8, 16, 32, 64):
            start(objectives, weights, pooled, 0, masked)
    for objectives in (12, 24, 48, 63):  # rounded up, by 16 or not
        start(objectives, "gaussian", "union", 0)
    for seed in (1, 7, -7, 2**32 + 5, 2**36, 2**64 - 1):
        for objectives in (1, 4):
            start(objectives, "gaussian", "union", seed, masked=objectives == 4)


def statistics_starts() -> None:
    offsets = torch.arange(5)
    launch.sequence_stats(torch.zeros(4), offsets)
    launch.sequence_stats(torch.zeros(5)[1:], offsets)
    launch.expand_segments(torch.zeros(4), offsets[:-1], offsets[1:], 4)
    launch.expand_segments(torch.zeros(4), offsets[:-1], offsets[:-1].clone(), 4)


@functools.cache
def all_starts(architecture: int) -> tuple[Start, ...]:
    with record(architecture) as starts:
        for layout in LAYOUTS:
            head_starts(layout)
            row_starts(layout)
        objective_starts()
        statistics_starts()
    return tuple(starts)


def resources(compiled, folder: Path) -> dict[str, int]:
    """Registers, stack, shared and local bytes of a compiled kernel, as cuobjdump reads them."""
    binary = folder / "kernel.cubin"
    binary.write_bytes(compiled.asm["cubin"])
    tool = Path(triton.__file__).parent / "backends/nvidia/bin/cuobjdump"
    text = subprocess.run([tool, "-res-usage", binary], capture_output=True, text=True, check=True).stdout
    return {name: int(value) for name, value in re.findall(r"\b(REG|STACK|SHARED|LOCAL):(\d+)", text)}


def check_wide_accesses(start: Start, ptx: str) -> None:
    """Where rows are aligned, matrices are read and written by vectors."""
    strides = [name for name, _ in start.signature if name.endswith("_stride")]
    # Only the row pass reads full blocks without a mask; elsewhere an odd number of columns takes single elements.
    by_blocks = start.name.startswith("row_pass")
    columns = [name for name, _ in start.signature if name in ("width", "columns")]
    if not strides or not start.divides(*strides, *columns):
        return
    loads, stores = (re.findall(rf"{access}\.global[.\w:]*", ptx) for access in ("ld", "st"))
    assert any(re.search(r"\.v[248]", load) for load in loads), f"{start}: loads single elements"
    wide = [bool(re.search(r"\.v[248]", store)) for store in stores]
    if by_blocks and dict(start.constants)["STORE"]:
        assert any(wide), f"{start}: stores single elements"  # the tail, the target and the row's state are single
    if not by_blocks:
        assert all(wide), f"{start}: stores single elements"


@pytest.mark.timeout(1800)  # minutes for the largest, where Triton's cache is empty
@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("name", sorted(TABLE))
def test_kernel_compiles_without_spills(name, architecture, tmp_path):
    starts = [start for start in all_starts(architecture) if start.name == name]
    assert starts, f"{name} is in the table but not started here"
    for start in starts:
        compiled = start.compile(architecture)
        used = resources(compiled, tmp_path)
        assert used["LOCAL"] == 0 and used["STACK"] == 0, f"{start} spills: {used}"
        assert used["SHARED"] <= SHARED_LIMIT[architecture]
        check_wide_accesses(start, compiled.asm["ptx"])


def constants_of(*names: str) -> set[tuple]:
    """Constants that these kernels of the table are compiled with, without the block."""
    starts = [start for start in all_starts(ARCHITECTURES[0]) if start.name in names]
    flags = [name for name in starts[0].kernel.arg_names if name.isupper() and name != "BLOCK"]
    return {tuple(dict(start.constants)[flag] for flag in flags) for start in starts}


def test_every_combination_of_flags_is_compiled():
    transforms = [*itertools.product((False, True), repeat=3)]
    # STORE, MAXIMUM_FIRST, HALF_RANGE: no gradient; out of place; in place; fp16
    forms = [(False, False, False), (True, False, False), (True, True, False), (True, False, True)]
    names = [name for name in TABLE if name.startswith("row_pass")]
    assert constants_of(*names) == {(*t, *f) for t in transforms for f in forms}
    assert constants_of("tile_pass") == {(*t, half) for t in transforms for half in (False, True)}
    sources = (mobt.GIVEN, mobt.GAUSSIAN, mobt.MEAN, mobt.UNIFORM)
    assert constants_of("mobt") == set(itertools.product(sources, (False, True), (False, True), (2, 4, 8, 16, 32, 64)))


def test_no_kernel_is_missing_from_the_table():
    modules = (row_pass, segments, mobt, gather)
    kernels = {
        name for module in modules for name in vars(module) if name.endswith("_kernel")
        and vars(module)[name].fn.__module__ == module.__name__
    }  # fmt: skip
    starts = all_starts(ARCHITECTURES[0])
    assert kernels == {start.kernel.fn.__name__ for start in starts}
    assert {start.name for start in starts} == set(TABLE)
    assert all(set(rows) == set(ARCHITECTURES) for rows in TABLE.values())
    assert all(config.num_warps <= 16 for rows in TABLE.values() for config in rows.values())


def test_arguments_are_described_as_triton_describes_them():
    native = pytest.importorskip("triton._C.libtriton")
    if not hasattr(native, "native_specialize_impl"):
        pytest.skip("this Triton describes arguments elsewhere")
    aligned, shifted = torch.zeros(8, dtype=BF16), torch.zeros(9, dtype=BF16)[1:]
    for value in (0, 1, 2, -7, 48, 2**31 - 1, 2**31, -(2**31), 2**36, -(2**63), 1.0, 0.7, None, aligned, shifted):
        kind, mark = native.native_specialize_impl(triton.backends.compiler.BaseBackend, value, False, True, True)
        assert specialise(value) == (kind, DIVISIBLE if mark == "D" else ()), value
