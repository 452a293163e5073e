"""Every Triton kernel in every configuration of the dispatcher's table compiles for sm_80 and sm_90, without spills.

Needs no GPU: Triton brings ptxas. Pointers and strides carry the attributes that they have at run time (divisible by
16); without them the kernels would compile to scalar accesses and nothing here would be about the code that runs.
"""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest

triton = pytest.importorskip("triton")

from triton.backends.compiler import GPUTarget  # noqa: E402
from triton.compiler import ASTSource  # noqa: E402

from amopo_kernels.triton import gather, mobt, row_pass, segments  # noqa: E402
from amopo_kernels.triton.configs import ARCHITECTURES, TABLE  # noqa: E402

SHARED_LIMIT = {80: 163 * 1024, 90: 227 * 1024}
POINTERS = {
    "targets": "i64", "starts": "i64", "stops": "i64", "offsets": "i64", "sample_ids": "i64", "step": "i64",
    "index": "i64", "positions": "i64",
}  # fmt: skip
SCALARS = {
    "vocab": "i32", "width": "i32", "columns": "i32", "scale": "fp32", "cap": "fp32", "factor": "fp32", "beta": "fp32",
    "gamma": "fp32", "seed": "i64", "num_objectives": "i32",
}  # fmt: skip


def flags(**values):
    return {"HAS_BIAS": False, "HAS_SCALE": False, "HAS_CAP": False, **values}


def row_cases():
    """(kernel of the table, function, dtypes of pointers, constants), as `launch` starts them."""
    for logits, out, first, half in [
        ("fp32", "bf16", False, False),  # CUDA default for bf16 models
        ("fp32", "fp32", True, False),  # fp32 in place
        ("bf16", "bf16", True, False),  # logits_dtype="input"
        ("fp32", "fp16", True, True),
        ("fp16", "fp16", True, True),
    ]:
        for transform in (
            {},
            {"HAS_BIAS": True, "HAS_SCALE": True},
            {"HAS_BIAS": True, "HAS_SCALE": True, "HAS_CAP": True},
        ):
            name = "row_pass_softcap" if transform.get("HAS_CAP") else "row_pass"
            constants = flags(**transform) | {"STORE": True, "MAXIMUM_FIRST": first, "HALF_RANGE": half}
            yield name, row_pass.row_pass_kernel, {"logits": logits, "out": out}, constants
            yield (
                "tile_pass",
                row_pass.tile_pass_kernel,
                {"logits": logits, "out": out},
                flags(**transform) | {"HALF_RANGE": half},
            )
        constants = flags() | {"STORE": False, "MAXIMUM_FIRST": False, "HALF_RANGE": False}
        yield "row_pass", row_pass.row_pass_kernel, {"logits": logits, "out": logits}, constants


def other_cases():
    yield "sequence_stats", segments.sequence_stats_kernel, {}, {}
    yield "expand_segments", mobt.expand_segments_kernel, {}, {}
    for weights in (mobt.GIVEN, mobt.GAUSSIAN, mobt.MEAN, mobt.UNIFORM):
        for union in (True, False):
            for objectives in (2, 8, 64):
                constants = {"WEIGHTS": weights, "UNION": union, "OBJECTIVES": objectives}
                yield "mobt", mobt.mobt_kernel, {}, constants
    for dtype in ("fp32", "bf16", "fp16"):
        yield "gather_rows", gather.gather_rows_kernel, {"x": dtype, "out": dtype}, {}
        yield "scatter_rows", gather.scatter_rows_kernel, {"grad": dtype, "out": dtype}, {}
        yield "scale_rows", gather.scale_rows_kernel, {"x": dtype, "out": dtype}, {}


CASES = [*row_cases(), *other_cases()]


def compile_kernel(function, dtypes, constants, config, architecture):
    names = function.arg_names
    constants = {**constants, "BLOCK": config.block}
    signature, attributes = {}, {}
    for position, name in enumerate(names):
        if name in constants:
            signature[name] = "constexpr"
        elif name.endswith("_ptr"):
            base = name.removesuffix("_ptr")
            signature[name] = "*" + dtypes.get(base, POINTERS.get(base, "fp32"))
            attributes[(position,)] = [["tt.divisibility", 16]]
        elif name.endswith("_stride"):
            signature[name] = "i32"
            attributes[(position,)] = [["tt.divisibility", 16]]
        else:
            signature[name] = SCALARS[name]
    source = ASTSource(
        fn=function,
        signature=signature,
        constexprs={(names.index(name),): value for name, value in constants.items()},
        attrs=attributes,
    )
    options = {"num_warps": config.num_warps, "enable_fp_fusion": True}
    return triton.compile(source, target=GPUTarget("cuda", architecture, 32), options=options)


def resources(compiled, folder: Path) -> dict[str, int]:
    """Registers, stack, shared and local bytes of a compiled kernel, as cuobjdump reads them."""
    binary = folder / "kernel.cubin"
    binary.write_bytes(compiled.asm["cubin"])
    tool = Path(triton.__file__).parent / "backends/nvidia/bin/cuobjdump"
    text = subprocess.run([tool, "-res-usage", binary], capture_output=True, text=True, check=True).stdout
    return {name: int(value) for name, value in re.findall(r"\b(REG|STACK|SHARED|LOCAL):(\d+)", text)}


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("name", sorted(TABLE))
def test_kernel_compiles_without_spills(name, architecture, tmp_path):
    cases = [case for case in CASES if case[0] == name]
    assert cases, f"{name} is in the table but not compiled here"
    for _, function, dtypes, constants in cases:
        compiled = compile_kernel(function, dtypes, constants, TABLE[name][architecture], architecture)
        used = resources(compiled, tmp_path)
        assert used["LOCAL"] == 0 and used["STACK"] == 0, f"{name} {dtypes} {constants} spills: {used}"
        assert used["SHARED"] <= SHARED_LIMIT[architecture]
        if name.startswith("row_pass") and constants["STORE"]:
            assert re.search(r"ld\.global[.\w:]*\.v[248]", compiled.asm["ptx"]), f"{name} {dtypes}: scalar loads"
            assert re.search(r"st\.global[.\w:]*\.v[248]", compiled.asm["ptx"]), f"{name} {dtypes}: scalar stores"


def test_no_kernel_is_missing_from_the_table():
    modules = (row_pass, segments, mobt, gather)
    kernels = {
        name for module in modules for name in vars(module) if name.endswith("_kernel")
        and vars(module)[name].fn.__module__ == module.__name__
    }  # fmt: skip
    compiled = {function.fn.__name__ for _, function, _, _ in CASES}
    assert kernels == compiled
    assert {name for name, *_ in CASES} == set(TABLE)
    assert all(set(rows) == set(ARCHITECTURES) for rows in TABLE.values())
    assert all(config.num_warps <= 16 for rows in TABLE.values() for config in rows.values())
