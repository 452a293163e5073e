"""Names that have come up, in a few bytes each.

`SeenNames.add(name)` says whether the name came up before: False is certain, True is wrong once in 2**63 / n names.
It keeps a 63-bit hash per name in an open table: at most 24 bytes per name, where a Python set takes more than 100.
"""

from __future__ import annotations

from array import array

from amopo.packing.sample import sample_id_to_int64

_SMALLEST = 1 << 10


class SeenNames:
    """A set of hashes; the length counts the different ones."""

    def __init__(self) -> None:
        self._slots = _empty(_SMALLEST)
        self._count = 0

    def __len__(self) -> int:
        return self._count

    def add(self, name: str) -> bool:
        """Adds the name; True if it seems to be there already."""
        return self.add_hash(sample_id_to_int64(name))

    def add_hash(self, value: int) -> bool:
        """The same for a hash below 2**63."""
        slot = self._find(value + 1)  # an empty slot holds 0
        if self._slots[slot]:
            return True
        self._slots[slot] = value + 1
        self._count += 1
        if 3 * self._count > 2 * len(self._slots):
            self._grow()
        return False

    def _find(self, value: int) -> int:
        mask = len(self._slots) - 1
        slot = value & mask
        while self._slots[slot] not in (0, value):
            slot = (slot + 1) & mask
        return slot

    def _grow(self) -> None:
        full = self._slots
        self._slots = _empty(2 * len(full))
        for value in full:
            if value:
                self._slots[self._find(value)] = value


def _empty(size: int) -> array:
    return array("Q", bytes(8 * size))
