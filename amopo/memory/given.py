"""The tensors that are there before a tracker watches.

`tensors_of(model, optimizer)` yields parameters, buffers, gradients and optimizer state, and what DeepSpeed keeps
beside them: each parameter's partition (`ds_tensor`), and the flat buffers of its ZeRO optimizers (partitions of
weights and gradients, the fp32 master, the bucket of the reduction). Several may share a storage.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn


def tensors_of(model: nn.Module | None, optimizer: Any) -> Iterator[Tensor]:
    if model is not None:
        for tensor in (*model.parameters(), *model.buffers()):
            yield from _with_gradient(tensor)
            if isinstance(partition := getattr(tensor, "ds_tensor", None), Tensor):
                yield partition
    yield from _state_of(optimizer)
    if optimizer is not None and not isinstance(optimizer, torch.optim.Optimizer):
        for value in list(vars(optimizer).values()):
            yield from _inside(value)
        yield from _state_of(getattr(optimizer, "optimizer", None))  # the one that it drives


def _state_of(optimizer: Any) -> Iterator[Tensor]:
    for values in getattr(optimizer, "state", {}).values():
        yield from (value for value in values.values() if isinstance(value, Tensor))


def _with_gradient(tensor: Tensor) -> Iterator[Tensor]:
    yield tensor
    if tensor.is_leaf and tensor.grad is not None:
        yield tensor.grad


def _inside(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield from _with_gradient(value)
    elif isinstance(value, Mapping):
        for part in list(value.values()):
            yield from _inside(part)
    elif isinstance(value, list | tuple):
        for part in value:
            yield from _inside(part)
    elif dataclasses.is_dataclass(value) and not isinstance(value, type):  # a bucket
        yield from _inside([getattr(value, field.name) for field in dataclasses.fields(value)])
