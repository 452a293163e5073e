"""A forward that was replaced on an instance: its handle, and how copies of the model call it.

`ReplacedForward(owner)`, then `install(forward)`: `remove()`, or the end of a `with`, restores what was there before.
`call_on(model, forward, owner, ...)` runs the weights of `model`, which may be a copy of `owner`.

While it is installed, `nn.DataParallel` cannot replicate the model: a replica is a copy of the instance's attributes,
the replaced forward among them, which is bound to the original and would run the original's weights on its device.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NoReturn, Self

from torch import nn

# Called by torch.nn.parallel.replicate on every module, once per device.
_REPLICATE = "_replicate_for_data_parallel"


def _refuse_replicas() -> NoReturn:
    # A function that takes no `self`: it stays what it is in a copy of the model, and can be pickled.
    raise ValueError(
        "nn.DataParallel cannot replicate a patched model: its replicas would run the original's forward, with the "
        "original's weights, on another device; start one process per device instead (torchrun --nproc-per-node N, "
        "accelerate launch), or remove the patch first (handle.remove())"
    )


class ReplacedForward:
    """The handle of a forward that was replaced on an instance; a context manager that removes it at the end."""

    replaced_by = ""  # who replaced it, for the message

    def __init__(self, owner: nn.Module) -> None:
        self.owner = owner
        self._previous: Callable | None = owner.__dict__.get("forward")
        self._previous_replicate: Callable | None = owner.__dict__.get(_REPLICATE)
        self._installed: Callable | None = None

    def install(self, forward: Callable) -> None:
        """Put `forward` on the instance."""
        self._installed = forward
        self.owner.forward = forward
        setattr(self.owner, _REPLICATE, _refuse_replicas)

    def remove(self) -> None:
        """Restore the forward that was there before; a second call does nothing."""
        if self._installed is None:
            return
        if self.owner.__dict__.get("forward") is not self._installed:
            raise RuntimeError(
                f"the forward of {type(self.owner).__name__} was replaced again after {self.replaced_by} (by "
                "accelerate's mixed precision, for example); remove that first"
            )
        _put_back(self.owner, "forward", self._previous)
        _put_back(self.owner, _REPLICATE, self._previous_replicate)
        self._installed = None
        self._removed()

    def _removed(self) -> None:
        """What else is put back once the forward is."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.remove()


def _put_back(owner: nn.Module, name: str, previous: Callable | None) -> None:
    """`previous` as an attribute of the instance; None: the class's own."""
    if previous is None:
        owner.__dict__.pop(name, None)
    else:
        setattr(owner, name, previous)


def call_on(model: nn.Module, forward: Callable, owner: nn.Module, args: tuple, kwargs: dict[str, Any]) -> Any:
    """`forward(*args, **kwargs)`, a forward that stood on `owner`, on `model`: `owner` itself, or a copy of it.

    A copy takes the functions of the original with it, and a method bound to the original would run its weights.
    """
    if getattr(forward, "__self__", None) is owner:
        return forward.__func__(model, *args, **kwargs)
    return forward(*args, **kwargs)
