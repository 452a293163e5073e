"""Training of any Hugging Face causal LM on packed preference samples.

Names are loaded at first use: `packed_logps` and `patch_forward` need torch alone, the trainer needs transformers.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

_EXPORTS = {
    "AMoPOConfig": "amopo.trainer.config",
    "AMoPOTrainer": "amopo.trainer.trainer",
    "PackedForward": "amopo.trainer.forward",
    "packed_logps": "amopo.trainer.logps",
    "patch_forward": "amopo.trainer.forward",
}

__all__ = ["AMoPOConfig", "AMoPOTrainer", "PackedForward", "packed_logps", "patch_forward"]

if TYPE_CHECKING:
    from amopo.trainer.config import AMoPOConfig
    from amopo.trainer.forward import PackedForward, patch_forward
    from amopo.trainer.logps import packed_logps
    from amopo.trainer.trainer import AMoPOTrainer


def __getattr__(name: str) -> Any:
    if name not in _EXPORTS:
        raise AttributeError(f"module 'amopo.trainer' has no attribute {name!r}")
    return getattr(importlib.import_module(_EXPORTS[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *_EXPORTS})
