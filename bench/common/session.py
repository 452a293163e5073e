"""What a benchmark session shares: its options, device, shapes, cases, and the recorder of results."""

from __future__ import annotations

import gc
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import torch

from bench.common import machine
from bench.common.cases import SHAPES, HeadCase, HeadShape, make_case
from bench.common.results import Recorder

Result = TypeVar("Result")
DTYPES = {"bf16": torch.bfloat16, "fp32": torch.float32, "fp16": torch.float16}
# Seconds and rounds per entrant: (seconds, fewest, most).
EFFORT = {"small": (0.05, 3, 5), "cpu": (60.0, 3, 7), "cuda": (1.0, 10, 50)}


@dataclass
class BenchSession:
    """Made once per pytest session, from its options."""

    device: torch.device
    full: bool
    dtype: torch.dtype
    only_shapes: str
    rounds: int | None
    recorder: Recorder
    skip_compiled: bool = False
    _case: HeadCase | None = None
    _race: tuple[object, object] = (None, None)

    @property
    def scale(self) -> str:
        return self.device.type if self.full else "small"

    def shapes(self) -> list[HeadShape]:
        """The shapes of this session; `--shape TEXT` keeps those whose name contains TEXT."""
        return [shape for shape in SHAPES[self.scale] if self.only_shapes in str(shape)]

    def case(self, shape: HeadShape, inputs: str) -> HeadCase:
        """One case is kept at a time: the next one takes its memory."""
        current = self._case
        if current is None or (current.shape, current.inputs) != (shape, inputs):
            self._case = None
            if self.device.type == "cuda":
                torch.cuda.empty_cache()
            self._case = make_case(shape, self.dtype, self.device, inputs)
        return self._case

    def race(self, key: object, run: Callable[[], Result]) -> Result:
        """The race of this key, run when its first entrant asks; the one before it is forgotten."""
        if self._race[0] != key:
            self._race = (None, None)
            gc.collect()
            if self.device.type == "cuda":
                torch.cuda.empty_cache()
            self._race = (key, run())
        return self._race[1]

    def effort(self) -> dict:
        seconds, fewest, most = EFFORT[self.scale]
        if self.rounds is not None:
            fewest = most = self.rounds
        return {"seconds": seconds, "min_rounds": fewest, "max_rounds": most}

    def key(self, case: HeadCase, **more: object) -> dict:
        """What tells a record from others."""
        return {
            "shape": str(case.shape), "rows": case.shape.rows, "hidden": case.shape.hidden, "vocab": case.shape.vocab,
            "dtype": str(self.dtype).removeprefix("torch."), "inputs": case.inputs, "small": not self.full, **more,
        }  # fmt: skip


def open_session(
    *,
    device: str | None,
    full: bool,
    dtype: str,
    shape: str,
    rounds: int | None,
    results: str | None,
    skip_compiled: bool = False,
) -> BenchSession:
    name = device or ("cuda" if torch.cuda.is_available() else "cpu")
    chosen = torch.device(name, torch.cuda.current_device()) if name == "cuda" else torch.device(name)
    run = {
        "machine": machine.describe(chosen), "versions": machine.versions(), "command": machine.command(),
        "date": machine.today(),
    }  # fmt: skip
    recorder = Recorder(None if results is None else Path(results), machine.slug(run["machine"]["device"]), run)
    return BenchSession(chosen, full, DTYPES[dtype], shape, rounds, recorder, skip_compiled)
