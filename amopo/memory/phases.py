"""The phases of a training step, and the peak of each.

    load       weights are there, nothing has run
    forward    from the first layer to the hidden states that enter the head
    head       the head's forward, the loss, and the head's backward
    backward   the rest of the backward
    step       the optimizer

`PhasePeaks(tracker)` reads peaks from a `MemTracker` at the points where phases begin.
"""

from __future__ import annotations

from typing import Any

PHASES = ("load", "forward", "head", "backward", "step")


class PhasePeaks:
    """Peak bytes of each phase, and of what they consist; a phase that comes again replaces its last values."""

    def __init__(self, tracker: Any) -> None:
        self.tracker = tracker
        self.bytes: dict[str, int] = {}
        self.kinds: dict[str, dict[str, int]] = {}
        self._phase: str | None = None

    def begin(self, phase: str) -> None:
        """End the phase that runs and begin the next: its peak starts from what is held now."""
        self.end()
        # What MemTracker.__enter__ does; there is no public way to begin a new peak.
        snapshot = self.tracker.get_tracker_snapshot("current")
        self.tracker._peak_mem_snap = snapshot
        self.tracker._peak_mem = {device: kinds["Total"] for device, kinds in snapshot.items()}
        self._phase = phase

    def end(self) -> None:
        """Note the peak of the phase that runs."""
        if self._phase is None:
            return
        total: dict[str, int] = {}
        for kinds in self.tracker.get_tracker_snapshot("peak").values():
            for kind, size in kinds.items():
                name = getattr(kind, "value", kind)
                total[name] = total.get(name, 0) + size
        self.bytes[self._phase] = total.pop("Total", 0)
        self.kinds[self._phase] = {name: size for name, size in total.items() if size}
        self._phase = None
