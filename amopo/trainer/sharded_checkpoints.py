"""Checkpoints that several ranks wrote, for a run on another number of ranks.

Contract
--------
- `holds_fsdp(folder)`: weights or optimizer of an FSDP run stand in it. FSDP itself reads them on any number of ranks;
  `load_fsdp_weights` and `load_fsdp_optimizer` put them, whole, into a model and an optimizer of one process, from
  both forms that accelerate writes (FULL_STATE_DICT: one file, SHARDED_STATE_DICT: a folder of shards).
- `make_universal(folder)`: DeepSpeed's ZeRO shards fit the number of ranks that wrote them only. Its own converter
  turns them into a universal checkpoint beside them (as many bytes again), which any number of ranks can load.

Memory: everything that is loaded stands on the host once more.
"""

from __future__ import annotations

import logging
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.distributed.checkpoint.format_utils import dcp_to_torch_save
from torch.distributed.checkpoint.state_dict import StateDictOptions, set_model_state_dict, set_optimizer_state_dict

logger = logging.getLogger(__name__)

WEIGHTS, OPTIMIZER = "pytorch_model_fsdp", "optimizer"
_WHOLE = StateDictOptions(full_state_dict=True, strict=True)


def holds_fsdp(folder: str | os.PathLike) -> bool:
    """Whether FSDP wrote this checkpoint."""
    return _place(folder, WEIGHTS) is not None


def load_fsdp_weights(folder: str | os.PathLike, model: nn.Module) -> None:
    """Fill the whole weights of `model`."""
    set_model_state_dict(model, _read(folder, WEIGHTS, "model"), options=_WHOLE)


def load_fsdp_optimizer(folder: str | os.PathLike, model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    """Fill the state of an optimizer of `model`'s whole parameters."""
    set_optimizer_state_dict(model, optimizer, _read(folder, OPTIMIZER, "optimizer"), options=_WHOLE)


def _place(folder: str | os.PathLike, name: str) -> Path | None:
    for path in (Path(folder) / f"{name}.bin", Path(folder) / f"{name}_0"):
        if path.exists():
            return path
    return None


def _read(folder: str | os.PathLike, name: str, key: str) -> dict[str, Any]:
    path = _place(folder, name)
    if path is None:
        raise ValueError(f"{str(folder)!r} holds no {name}.bin and no folder {name}_0; resume from another checkpoint")
    if path.is_file():
        return torch.load(path, map_location="cpu", weights_only=True)
    with tempfile.TemporaryDirectory() as scratch:
        whole = Path(scratch) / "whole.pt"
        dcp_to_torch_save(path, whole)
        return torch.load(whole, map_location="cpu", weights_only=True)[key]


def separate_step_counts(optimizer: torch.optim.Optimizer) -> None:
    """Give every parameter a step count of its own.

    DeepSpeed 0.19 loads a universal ZeRO-3 checkpoint with one tensor as the step of all parameter groups, and torch's
    Adam counts it up in place, once per group.
    """
    for state in optimizer.state.values():
        if isinstance(state.get("step"), torch.Tensor):
            state["step"] = state["step"].clone()


def universal_tag(folder: str | os.PathLike) -> str | None:
    """The name of the universal checkpoint in `folder`, or None."""
    latest = Path(folder) / "latest_universal"
    return latest.read_text(encoding="utf-8").strip() if latest.is_file() else None


def make_universal(folder: str | os.PathLike) -> str:
    """Write the universal form of a DeepSpeed checkpoint beside it, if it is not there; returns its name."""
    there = universal_tag(folder)
    if there is not None:
        return there
    tag = (Path(folder) / "latest").read_text(encoding="utf-8").strip()
    source, target = Path(folder) / tag, Path(folder) / f"{tag}_universal"
    logger.warning("%s: writing DeepSpeed's universal form of it, for another number of ranks", target)
    command = [sys.executable, "-m", "deepspeed.checkpoint.ds_to_universal", "--inject_missing_state"]
    command += ["--input_folder", str(source), "--output_folder", str(target)]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode != 0:
        raise RuntimeError(
            f"DeepSpeed could not convert {str(source)!r} for another number of ranks; resume with as many ranks as "
            f"wrote it. Its last words:\n{done.stderr[-2000:]}"
        )
    (Path(folder) / "latest_universal").write_text(target.name, encoding="utf-8")
    return target.name
