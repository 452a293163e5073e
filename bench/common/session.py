"""What a benchmark session shares: its options, device, shapes, cases, and the recorder of results."""

from __future__ import annotations

import gc
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

import torch

from bench.common import machine
from bench.common.cases import SHAPES, HeadCase, HeadShape, make_case
from bench.common.measure import Entrant, message_of
from bench.common.memory_cases import MemoryCase, memory_cases_with
from bench.common.results import Recorder
from bench.common.step_models import STEP_SHAPES, StepShape

Result = TypeVar("Result")
DTYPES = {"bf16": torch.bfloat16, "fp32": torch.float32, "fp16": torch.float16}
# Seconds and rounds per entrant: (seconds, fewest, most).
EFFORT = {"small": (0.05, 3, 5), "cpu": (60.0, 3, 7), "cuda": (1.0, 10, 50)}


class RaceFailed(RuntimeError):
    """A race raised when its first entrant asked; the others are told, instead of running it again."""


@dataclass
class BenchSession:
    """Made once per pytest session, from its options."""

    device: torch.device
    full: bool
    dtype: torch.dtype
    only_shapes: Sequence[str]
    rounds: int | None
    recorder: Recorder
    run: dict  # machine, versions, command, date
    skip_compiled: bool = False
    _case: HeadCase | None = None
    _races: dict[object, object] = field(default_factory=dict)

    @property
    def scale(self) -> str:
        return self.device.type if self.full else "small"

    def shapes(self) -> list[HeadShape]:
        """The shapes of this session; each `--shape TEXT` keeps those whose name contains TEXT."""
        return shapes_with(self.only_shapes, self.scale)

    def step_shapes(self) -> list[StepShape]:
        """Likewise, of the benchmarks that run whole models or layers."""
        return step_shapes_with(self.only_shapes, self.scale)

    def memory_cases(self, *, searched: bool = False) -> list[MemoryCase]:
        """Likewise, of the benchmark of whole models' memory; `searched`: those whose largest budget is looked for."""
        return [case for case in memory_cases_with(self.only_shapes, self.scale) if case.search or not searched]

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
        """The race of this key, run once, when its first entrant asks; that it failed is remembered too.

        Raises:
            RaceFailed: it raised before. Whatever it raises, the first time.
        """
        if key not in self._races:
            gc.collect()
            if self.device.type == "cuda":
                torch.cuda.empty_cache()
            try:
                self._races[key] = run()
            except Exception as error:
                # the message alone: the exception would keep the tensors of its frames
                self._races[key] = RaceFailed(f"the race of {key} failed: {message_of(error)}")
                raise
        result = self._races[key]
        if isinstance(result, RaceFailed):
            raise RaceFailed(*result.args)
        return result

    def record(self, question: str, key: dict, entrant: Entrant, info: dict) -> None:
        """Write an entrant's medians and `info`, or its problem, and put all that into its `extra`."""
        beside = {"device": self.run["machine"]["device"], "machine": self.run["machine"]}
        entrant.extra = {**key, **beside, "versions": self.run["versions"], **info}
        if entrant.problem is not None:
            self.recorder.put(question, key, skipped=entrant.problem)
        else:
            self.recorder.put(question, key, stats=entrant.stats(), info=info)

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


def step_shapes_with(texts: Sequence[str], scale: str) -> list[StepShape]:
    """Shapes of whole models of a scale whose name contains each of `texts`; CPUs have small ones only."""
    return [shape for shape in STEP_SHAPES.get(scale, ()) if all(text in str(shape) for text in texts)]


def shapes_with(texts: Sequence[str], scale: str) -> list[HeadShape]:
    """Shapes of a scale (small, cpu, cuda) whose name contains each of `texts`."""
    return [shape for shape in SHAPES[scale] if all(text in str(shape) for text in texts)]


def open_session(
    *,
    device: str | None,
    full: bool,
    dtype: str,
    shape: Sequence[str],
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
    return BenchSession(chosen, full, DTYPES[dtype], shape, rounds, recorder, run, skip_compiled)
