"""What of a model decides a run's result.

Contract
--------
`model_identity(model)` gives plain values that are the same whenever the same model is set up for training, and differ
where training would:

- `config`: the entries of the configuration, without what changes nothing (names of places, versions, caches);
- `peft`: the settings of every adapter, by its name; empty without adapters;
- `dtypes`: how many parameters there are of each dtype;
- `trainable_parameters`, `trainable_names`: their number, and a digest of which they are;
- `frozen_weights`: a digest of the values that stay as they are, such as the base weights under LoRA.

`class_name(model)` is the same before and after FSDP2 shards the model.

The digest adds up each parameter's bits as integers: the same on every device, whatever the order of the sum. It costs
one pass over the frozen weights. Weights that are sharded away or not loaded are left out of it.
Values of trainable weights are no part of the identity: a checkpoint brings them.
"""

from __future__ import annotations

import enum
import hashlib
from collections import Counter
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule

# Where a model came from, and what packed training never looks at. The dtype is read from the weights.
_CONFIG_IGNORED = frozenset(
    "transformers_version architectures use_cache dtype torch_dtype pad_token_id bos_token_id eos_token_id id2label "
    "label2id return_dict output_attentions output_hidden_states".split()
)
_PEFT_IGNORED = frozenset(
    "base_model_name_or_path revision inference_mode peft_version auto_mapping task_type runtime_config".split()
)
_INTEGERS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


def model_identity(model: nn.Module) -> dict[str, Any]:
    """The model's part of a run's identity, as plain JSON values."""
    base = model.get_base_model() if hasattr(model, "get_base_model") else model
    trainable: list[str] = []
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            trainable.append(name)
    sizes = {name: numel(parameter) for name, parameter in model.named_parameters()}
    adapters = getattr(model, "peft_config", None) or {}
    return {
        "config": _readable(base.config.to_dict(), _CONFIG_IGNORED),
        "peft": {name: _readable(config.to_dict(), _PEFT_IGNORED) for name, config in adapters.items()},
        "dtypes": dtypes_of(model),
        "trainable_parameters": sum(sizes[name] for name in trainable),
        "trainable_names": hashlib.blake2b("\n".join(trainable).encode(), digest_size=8).hexdigest(),
        "frozen_weights": _frozen_digest(model),
    }


def dtypes_of(model: nn.Module) -> dict[str, int]:
    """How many parameters there are of each dtype, by its name."""
    dtypes: Counter[str] = Counter()
    for parameter in model.parameters():
        dtypes[str(parameter.dtype).removeprefix("torch.")] += numel(parameter)
    return dict(sorted(dtypes.items()))


def class_name(model: nn.Module) -> str:
    """The name of the model's class as it is written: `fully_shard` puts the model into a class of its own."""
    return next(cls.__name__ for cls in type(model).__mro__ if not issubclass(cls, FSDPModule))


def numel(parameter: Tensor) -> int:
    """Numbers in a parameter; DeepSpeed's ZeRO-3 leaves empty tensors behind that know their size."""
    return getattr(parameter, "ds_numel", parameter.numel())


def _readable(values: Mapping[str, Any], ignored: frozenset[str]) -> dict[str, Any]:
    """Entries that are scalars, or lists and dictionaries of them; private ones are left out."""
    found = {}
    for name, value in values.items():
        if name in ignored or str(name).startswith("_"):
            continue
        if isinstance(value, enum.Enum):
            value = value.value
        if isinstance(value, set | frozenset):
            value = sorted(value, key=str)
        if isinstance(value, Mapping):
            found[str(name)] = _readable(value, ignored)
        elif isinstance(value, list | tuple):
            found[str(name)] = [item for item in value if isinstance(item, str | int | float | bool)]
        elif value is None or isinstance(value, str | int | float | bool):
            found[str(name)] = value
    return found


@torch.no_grad()
def _frozen_digest(model: nn.Module) -> str:
    digest = hashlib.blake2b(digest_size=8)
    for name, parameter in model.named_parameters():
        data = parameter.data
        if parameter.requires_grad or type(data) is not Tensor or data.numel() == 0 or data.is_meta:
            continue
        integers = _INTEGERS.get(data.element_size())
        if integers is None:
            continue
        total = data.view(integers).sum(dtype=torch.int64).item()
        digest.update(f"{name} {tuple(data.shape)} {data.dtype} {total}\n".encode())
    return digest.hexdigest()
