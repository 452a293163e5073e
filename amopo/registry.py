"""Named entries that users can extend.

A `Registry` maps names to entries of one kind: templates, objectives, sources of weights.
`list()` gives the names, `get(name)` the entry, `register(name, entry)` adds one; `register(name)` is a decorator.
An unknown name raises ValueError that lists the known ones. A taken name raises unless `replace=True`.
"""

from __future__ import annotations

import builtins
from collections.abc import Callable
from typing import Generic, TypeVar, overload

T = TypeVar("T")


class Registry(Generic[T]):
    """Entries of one kind under unique names, in the order of their registration."""

    def __init__(self, kind: str) -> None:
        self.kind = kind
        self._entries: dict[str, T] = {}

    def list(self) -> builtins.list[str]:
        return builtins.list(self._entries)

    def get(self, name: str) -> T:
        if name in self:
            return self._entries[name]
        known = ", ".join(self._entries) or "none yet"
        raise ValueError(f"unknown {self.kind} {name!r}; known: {known}")

    def __contains__(self, name: object) -> bool:
        return isinstance(name, str) and name in self._entries

    @overload
    def register(self, name: str, entry: T, *, replace: bool = False) -> T: ...
    @overload
    def register(self, name: str, *, replace: bool = False) -> Callable[[T], T]: ...

    def register(self, name, entry=None, *, replace=False):
        """Adds `entry` under `name`, then returns it; without `entry`, a decorator that does so."""
        if not isinstance(name, str) or not name:
            raise ValueError(f"a {self.kind} needs a non-empty string as its name, not {name!r}")
        if entry is None:
            return lambda decorated: self.register(name, decorated, replace=replace)
        if name in self and not replace:
            raise ValueError(f"{self.kind} {name!r} is already registered; pass replace=True to overwrite it")
        self._entries[name] = entry
        return entry
