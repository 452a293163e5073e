"""A forward that was replaced on an instance: its handle, and how copies of the model call it.

`ReplacedForward(owner, previous)` restores `previous` (None: the class's own) by `remove()` or at the end of a `with`;
`call_on(model, forward, owner, ...)` runs the weights of `model`, which may be a copy of `owner`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Self

from torch import nn


class ReplacedForward:
    """The handle of a forward that was replaced on an instance; a context manager that removes it at the end."""

    replaced_by = ""  # who replaced it, for the message

    def __init__(self, owner: nn.Module, previous: Callable | None) -> None:
        self.owner = owner
        self._previous = previous
        self._installed: Callable | None = owner.__dict__.get("forward")

    def remove(self) -> None:
        """Restore the forward that was there before; a second call does nothing."""
        if self._installed is None:
            return
        if self.owner.__dict__.get("forward") is not self._installed:
            raise RuntimeError(
                f"the forward of {type(self.owner).__name__} was replaced again after {self.replaced_by} (by "
                "accelerate's mixed precision, for example); remove that first"
            )
        if self._previous is None:
            del self.owner.forward
        else:
            self.owner.forward = self._previous
        self._installed = None
        self._removed()

    def _removed(self) -> None:
        """What else is put back once the forward is."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.remove()


def call_on(model: nn.Module, forward: Callable, owner: nn.Module, args: tuple, kwargs: dict[str, Any]) -> Any:
    """`forward(*args, **kwargs)`, a forward that stood on `owner`, on `model`: `owner` itself, or a copy of it.

    A copy takes the functions of the original with it, and a method bound to the original would run its weights.
    """
    if getattr(forward, "__self__", None) is owner:
        return forward.__func__(model, *args, **kwargs)
    return forward(*args, **kwargs)
