"""AMoPO: align one language model to several objectives, without a reward model or a reference model.

Importing this package is cheap: every public name is loaded from its module at first use.
"""

from __future__ import annotations

import importlib
import sys
import types
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

# public name -> (module, attribute); attribute None: the module itself, which for the last three is a registry (list(),
# get(name), register(name))
_EXPORTS: dict[str, tuple[str, str | None]] = {
    "fused_loss": ("amopo.fused_loss", "fused_loss"),
    "FusedLoss": ("amopo.fused_loss", "FusedLoss"),
    "loss_from_logps": ("amopo.fused_loss", "loss_from_logps"),
    "linear_logprobs": ("amopo_kernels.linear_logprobs", "linear_logprobs"),
    "sequence_stats": ("amopo_kernels.segments", "sequence_stats"),
    "workspace_bytes": ("amopo_kernels.workspace", "workspace_bytes"),
    "TokenizedSample": ("amopo.packing.sample", "TokenizedSample"),
    "pack": ("amopo.packing.pack", "pack"),
    "PackedBatch": ("amopo.packing.pack", "PackedBatch"),
    "TreeLayout": ("amopo.packing.layout", "TreeLayout"),
    "patch": ("amopo.integrations.patch", "patch"),
    "packed_logps": ("amopo.trainer", "packed_logps"),
    "AMoPOTrainer": ("amopo.trainer", "AMoPOTrainer"),
    "AMoPOConfig": ("amopo.trainer", "AMoPOConfig"),
    "memory": ("amopo.memory", None),
    "templates": ("amopo.templates", None),
    "objectives": ("amopo.objectives", None),
    "weights": ("amopo.weights", None),
}

# spelled out, and imported below, for type checkers; a test holds it equal to the table
__all__ = [
    "__version__",
    "FusedLoss",
    "fused_loss",
    "loss_from_logps",
    "linear_logprobs",
    "sequence_stats",
    "workspace_bytes",
    "TokenizedSample",
    "pack",
    "PackedBatch",
    "TreeLayout",
    "patch",
    "packed_logps",
    "AMoPOTrainer",
    "AMoPOConfig",
    "memory",
    "templates",
    "objectives",
    "weights",
]

if TYPE_CHECKING:
    from amopo import memory, objectives, templates, weights
    from amopo.fused_loss import FusedLoss, fused_loss, loss_from_logps
    from amopo.integrations.patch import patch
    from amopo.packing import PackedBatch, TokenizedSample, TreeLayout, pack
    from amopo.trainer import AMoPOConfig, AMoPOTrainer, packed_logps
    from amopo_kernels import linear_logprobs, sequence_stats, workspace_bytes


def __getattr__(name: str) -> Any:
    try:
        module_name, attribute = _EXPORTS[name]
    except KeyError:
        raise AttributeError(f"module 'amopo' has no attribute {name!r}") from None
    module = importlib.import_module(module_name)
    value = module if attribute is None else getattr(module, attribute)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_EXPORTS})


class _Package(types.ModuleType):
    """Keeps a public function's name when the submodule of the same name is imported.

    The import system binds every imported submodule onto its package. Without this, `amopo.fused_loss` would be the
    module or the function, depending on what was imported before.
    """

    def __setattr__(self, name: str, value: Any) -> None:
        exported = _EXPORTS.get(name)
        if exported is not None and exported[1] is not None and isinstance(value, types.ModuleType):
            return
        super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Package
