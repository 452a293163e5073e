"""Memory of a training step: planned on paper, simulated without a device, measured.

`plan` computes it from a model's shape, `simulate` runs the real model code on tensors without storage, `track` watches
real steps. Formulas and their sources: docs/memory.md.
"""

from __future__ import annotations

from amopo.memory.tracking import MemoryTrack, track

__all__ = ["MemoryTrack", "track"]
