"""Ids of records that occur twice.

Ids are compared as text: 1 and "1" would name the same sample in reports and in the ids of pairs. A row without an id
is called by its number, such as "line-7". `UniqueIds.check(raw)` raises for a name that came up before, with the row
where. It keeps a few bytes per id, and nothing at all for a file without ids.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

from amopo.data.readers.raw import RawRecord
from amopo.data.schema import DataError
from amopo.data.seen import SeenNames


def default_id(raw: RawRecord, unit: str) -> str:
    """The id of a record that has none."""
    return f"{unit}-{raw.row}"


class UniqueIds:
    """`again()` reads the source from its beginning; it is asked for only where something seems to be wrong."""

    def __init__(self, unit: str, again: Callable[[], Iterator[RawRecord]]) -> None:
        self._unit, self._again = unit, again
        self._seen: SeenNames | None = None
        self._had_none = False

    def check(self, raw: RawRecord) -> None:
        if raw.id is None and self._seen is None:
            self._had_none = True
            return
        if self._seen is None:
            self._seen = SeenNames()
            if self._had_none:  # a given id could be one that an earlier row got
                for earlier in self._before(raw):
                    self._seen.add(default_id(earlier, self._unit))
        name = self._name(raw)
        if self._seen.add(name):
            for earlier in self._before(raw):
                if self._name(earlier) == name:
                    shown = name if raw.id is None else raw.id
                    raise DataError(
                        f"the id {shown!r} stands on {self._unit} {earlier.row} already; ids must be unique"
                    )

    def _name(self, raw: RawRecord) -> str:
        return default_id(raw, self._unit) if raw.id is None else str(raw.id)

    def _before(self, raw: RawRecord) -> Iterator[RawRecord]:
        for earlier in self._again():
            if earlier.row >= raw.row:
                return
            yield earlier
