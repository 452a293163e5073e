"""Launch configurations: data, per architecture. The dispatcher reads this table; a test compiles all of it.

No autotuning at run time: the same shapes run the same code in every process. `BLOCK` is in elements, `num_warps` in
warps of 32 threads (at most 16: AMD's limit for row kernels). A device that is not in the table uses the row of the
newest architecture not newer than itself.

Row kernels stream: 8 to 16 elements per thread keep enough loads in flight; larger blocks only cost registers. The
variants with softcap hold more values per element, so they get half the block.
"""

from __future__ import annotations

from typing import NamedTuple


class Config(NamedTuple):
    """One launch configuration."""

    block: int
    num_warps: int


ARCHITECTURES = (80, 90)

TABLE: dict[str, dict[int, Config]] = {
    "row_pass": {80: Config(4096, 8), 90: Config(4096, 8)},
    "row_pass_softcap": {80: Config(2048, 8), 90: Config(2048, 8)},
    "tile_pass": {80: Config(2048, 4), 90: Config(2048, 4)},
    "sequence_stats": {80: Config(512, 4), 90: Config(512, 4)},
    "mobt": {80: Config(512, 4), 90: Config(512, 4)},
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
