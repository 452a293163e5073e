"""Launch configurations: data, per architecture. The dispatcher reads this table; a test compiles all of it.

No autotuning at run time: the same shapes run the same code in every process. `BLOCK` is in elements, `num_warps` in
warps of 32 threads (at most 16: AMD's limit for row kernels). A device that is not in the table uses the row of the
newest architecture not newer than itself.

Row kernels stream: 8 to 16 elements per thread keep enough loads in flight; larger blocks only cost registers. The
variants with softcap hold more values per element, so they get half the block.

Left to itself, ptxas spills a pointer or two (8 to 16 bytes) where that lets one more block run per multiprocessor:
seen with a bias in the row pass, and in `mobt`, which never has that many blocks. A stated limit makes it keep all in
registers; the row pass without bias does without, since there the limit would cost blocks and nothing spills.
"""

from __future__ import annotations

from typing import NamedTuple


class Config(NamedTuple):
    """One launch configuration."""

    block: int
    num_warps: int
    max_registers: int | None = None  # per thread


ARCHITECTURES = (80, 90)

TABLE: dict[str, dict[int, Config]] = {
    "row_pass": {80: Config(4096, 8), 90: Config(4096, 8)},
    "row_pass_bias": {80: Config(4096, 8, 255), 90: Config(4096, 8, 255)},
    "row_pass_softcap": {80: Config(2048, 8), 90: Config(2048, 8)},
    "row_pass_softcap_bias": {80: Config(2048, 8, 255), 90: Config(2048, 8, 255)},
    "tile_pass": {80: Config(2048, 4), 90: Config(2048, 4)},
    "sequence_stats": {80: Config(512, 4), 90: Config(512, 4)},
    "mobt": {80: Config(512, 4, 128), 90: Config(512, 4, 128)},
    "expand_segments": {80: Config(512, 4), 90: Config(512, 4)},
    "gather_rows": {80: Config(1024, 4), 90: Config(1024, 4)},
    "scatter_rows": {80: Config(1024, 4), 90: Config(1024, 4)},
    "scale_rows": {80: Config(1024, 4), 90: Config(1024, 4)},
}


def architecture(capability: tuple[int, int] | None) -> int:
    """Key of the table for a compute capability; None (the interpreter) means the newest."""
    if capability is None:
        return ARCHITECTURES[-1]
    version = capability[0] * 10 + capability[1]
    return max((known for known in ARCHITECTURES if known <= version), default=ARCHITECTURES[0])


def config(kernel: str, capability: tuple[int, int] | None) -> Config:
    return TABLE[kernel][architecture(capability)]
