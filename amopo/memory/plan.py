"""Memory of one training step on one rank, computed.

`make_plan(shape, sample, settings)` -> `Plan`: for each phase the point where most is held, and what it is held for.
Every number follows from sizes; the formulas stand in the modules named below and, with their sources, in
docs/memory.md.

    what stands beside what               points
    parameters, gradients, optimizer      model_states
    activations, attention workspace      activations, layer_forward, layer_backward, attention
    head                                  head (amopo_kernels.workspace)
    communication                         communication
    context                               given: what CUDA and its libraries take, which is no tensor
"""

from __future__ import annotations

from dataclasses import dataclass

from amopo.memory.activations import Row
from amopo.memory.head import HeadMemory
from amopo.memory.phases import PHASES
from amopo.memory.points import Points
from amopo.memory.precision import Numbers
from amopo.memory.settings import RunSettings, SampleShape
from amopo.memory.shapes import ModelShape
from amopo.memory.workload import row_of

COMPONENTS = (
    "parameters", "gradients", "optimizer", "activations", "head", "attention workspace", "communication", "context",
)  # fmt: skip


@dataclass(frozen=True)
class Plan:
    """Bytes on one rank, by phase and component, at the point of the phase where most is held.

    host: bytes of host memory that offloading takes for this rank.
    """

    shape: ModelShape
    sample: SampleShape
    settings: RunSettings
    row: Row
    phases: dict[str, dict[str, int]]
    host: int

    def total(self, phase: str) -> int:
        return sum(self.phases[phase].values())

    @property
    def peak_phase(self) -> str:
        return max(PHASES, key=self.total)

    @property
    def peak(self) -> int:
        """The most that the rank holds at any point."""
        return self.total(self.peak_phase)


def make_plan(
    shape: ModelShape, sample: SampleShape, settings: RunSettings, *, context: int = 0, observed: bool = False
) -> Plan:
    """Plan a step of a packed row of `sample.samples` samples.

    Args:
        context: bytes that are no tensors. observed: the step runs under a tracker that is a dispatch mode; autograd
            then adds gradients that meet at a tied weight into a third tensor instead of in place.
    """
    return plan_row(shape, row_of(sample), sample, settings, context=context, observed=observed)


def plan_row(
    shape: ModelShape,
    row: Row,
    sample: SampleShape,
    settings: RunSettings,
    *,
    context: int = 0,
    observed: bool = False,
    head: HeadMemory | None = None,
    numbers: Numbers | None = None,
) -> Plan:
    """The same for a row whose sizes are known, and perhaps another head, or other sizes of numbers."""
    points = Points(shape, row, settings, observed, head, numbers)
    phases = {
        "load": points.load(),
        "forward": points.forward(),
        "head": points.head(),
        "backward": points.backward(),
        "step": points.step(),
    }
    phases = {name: {**part, "context": context} for name, part in phases.items()}
    return Plan(shape, sample, settings, row, phases, points.host())
