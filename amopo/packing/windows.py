"""Do a model's layers and its masks agree on sliding windows?

A packed call has no mask: it attends to what a layer says of its window. `watch_windows()` looks at plain calls of a
model with `tree_attention` installed and says where a layer's mask has another window than the layer was told of.
"""

from __future__ import annotations

import contextlib
import contextvars
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn


@dataclass
class Windows:
    """What plain calls were seen to do: the window in each layer's mask, and the one that its attention is told of.

    Some models put a sliding window into the mask alone, which a packed call does not have; others name one to an
    attention that looks at the mask. Only where both agree does the packed row attend to the same keys.
    """

    by_mask: dict[int, int | None] = field(default_factory=dict)
    masks: list[Tensor] = field(default_factory=list)  # alive, so that no other tensor gets their id
    disagreement: str | None = None

    def see_mask(self, mask: Any, window: int | None) -> None:
        """A mask that transformers made, and the window in it."""
        if isinstance(mask, Tensor):
            self.masks.append(mask)
            self.by_mask[id(mask)] = window

    def see_call(self, module: nn.Module, mask: Tensor | None, window: int | None) -> None:
        """A layer's plain call."""
        found = self.by_mask.get(id(mask)) if mask is not None else None
        if mask is not None and id(mask) not in self.by_mask:
            found = next((w for w in self.by_mask.values() if w is not None), None)  # a copy of one of them
        if found != window and self.disagreement is None:
            self.disagreement = (
                f"{type(module).__name__} {getattr(module, 'layer_idx', '')} is told of a sliding window of {window}, "
                f"but its mask has one of {found}"
            )


# Model types whose layers are not told of the window in their mask. The watch finds them; sharded weights, which cannot
# be tried, are judged by these names.
UNTOLD = ("phimoe", "qwen2_moe")


def check_untold_windows(config: Any) -> None:
    """Raise for a configuration whose window stands in the mask alone, where the model itself cannot be tried.

    Raises:
        ValueError: names the model type and the remedy.
    """
    kind, window = getattr(config, "model_type", None), getattr(config, "sliding_window", None)
    if kind in UNTOLD and window is not None and getattr(config, "use_sliding_window", True):
        raise ValueError(
            f"{kind} puts its sliding window of {window} into the attention mask alone, which a packed row does not "
            "have; load it with sliding_window=None (or use_sliding_window=False) if no sequence is longer than that"
        )


WATCH: contextvars.ContextVar[Windows | None] = contextvars.ContextVar("amopo_windows", default=None)


@contextlib.contextmanager
def watch_windows() -> Iterator[Windows]:
    """Looks at the masks and windows of plain calls of installed models."""
    watch = Windows()
    token = WATCH.set(watch)
    try:
        yield watch
    finally:
        WATCH.reset(token)


def watched(make_mask: Callable) -> Callable:
    """transformers' mask function, which tells a watch what it made."""

    def mask(*args: Any, **kwargs: Any) -> Any:
        watch = WATCH.get()
        if watch is None:
            return make_mask(*args, **kwargs)
        made = make_mask(*args, **{**kwargs, "allow_is_causal_skip": False})
        watch.see_mask(made, kwargs.get("local_size"))
        return made

    return mask
