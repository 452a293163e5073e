"""A run's identity: what must be the same for a resumed run to be the same run.

Contract
--------
`amopo_run.json`, written into the output directory and into each checkpoint, holds the settings that decide the result
(`SETTINGS`), the fingerprint of the training data, and the versions that ran. `check_same_run(checkpoint, record)`
raises one ValueError that lists every setting that differs, with its old and new value, the model's included (see
`amopo.trainer.identity`). A checkpoint without optimizer, scheduler or random states raises too: transformers would
start those anew and say nothing. `latest_checkpoint(directory)` finds the newest checkpoint that is complete: a run
that was killed while saving leaves a broken one behind.

A run may go on with fewer ranks, where the samples of each step stay the same (see `amopo.trainer.ranks`).

Not part of the identity: what changes rounding at most (`head_budget`, gradient checkpointing), and where and how often
is logged, evaluated and saved. Other versions than those recorded are logged as a warning.
"""

from __future__ import annotations

import enum
import importlib.metadata
import json
import logging
import os
import re
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from safetensors import safe_open
from torch import nn

from amopo.trainer.ranks import comparable, ranks_of, with_plan

logger = logging.getLogger(__name__)

RUN_FILE = "amopo_run.json"
STATE_FILE = "trainer_state.json"  # transformers writes it last, after weights, optimizer and random states
OPTIMIZER_FILE, SCHEDULER_FILE = "optimizer.pt", "scheduler.pt"

SETTINGS = (
    "objectives",
    "objective",
    "beta",
    "gamma",
    "weights",
    "objective_weights",
    "pooled",
    "orientation",
    "tokens_per_batch",
    "max_samples_per_batch",
    "rows_per_batch",
    "sharing",
    "noise_seed",
    "logits_dtype",
    "seed",
    "data_seed",
    "num_train_epochs",
    "max_steps",
    "learning_rate",
    "lr_scheduler_type",
    "lr_scheduler_kwargs",
    "warmup_steps",
    "warmup_ratio",
    "weight_decay",
    "max_grad_norm",
    "optim",
    "optim_args",
    "adam_beta1",
    "adam_beta2",
    "adam_epsilon",
    "neftune_noise_alpha",
    "bf16",
    "fp16",
    "save_only_model",
    "ignore_data_skip",
)
_PACKAGES = ("torch", "transformers", "accelerate", "peft")


def run_record(
    args: Any,
    *,
    data_fingerprint: str,
    num_samples: int,
    model_class: str,
    model: Mapping[str, Any] | None = None,
    planned_ranks: int | None = None,
) -> dict[str, Any]:
    """Settings, data, model (as `model_identity` gives it) and versions of a run, as plain JSON values.

    `planned_ranks`: of the run that this one continues, where it had more ranks.
    """
    settings = {name: _plain(getattr(args, name)) for name in SETTINGS if hasattr(args, name)}
    settings |= ranks_of(args, planned_ranks)
    settings["data_fingerprint"] = data_fingerprint
    settings["num_samples"] = num_samples
    settings["model_class"] = model_class
    if model is not None:
        settings["model"] = _plain(dict(model))
    return {"settings": settings, "versions": _versions()}


def _plain(value: Any) -> Any:
    if isinstance(value, enum.Enum):
        value = value.value
    return json.loads(json.dumps(value, default=str))


def _versions() -> dict[str, str]:
    from amopo import __version__

    found = {"amopo": __version__}
    for package in _PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def write_run_record(directory: str | os.PathLike, record: dict[str, Any]) -> None:
    """Write `amopo_run.json` so that it is whole or not there."""
    target = Path(directory) / RUN_FILE
    target.parent.mkdir(parents=True, exist_ok=True)
    unfinished = target.with_suffix(".tmp")
    unfinished.write_text(json.dumps(record, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    os.replace(unfinished, target)


def check_same_run(checkpoint: str | os.PathLike, record: dict[str, Any], *, rank: int | None = None) -> None:
    """Raise if the checkpoint is incomplete, or belongs to a run with other settings, data or model.

    With `rank`, only that process's random state is looked for: for checkpoints that every node keeps for itself.
    """
    folder = Path(checkpoint)
    if not folder.is_dir():
        raise ValueError(f"checkpoint {str(checkpoint)!r} does not exist; give the path of a checkpoint folder")
    old_record = _read_record(folder)
    if old_record is None:
        raise ValueError(
            f"cannot resume from {str(checkpoint)!r}: {RUN_FILE} is missing or broken, so it is not known how this "
            "checkpoint was made; start a new run from its weights instead"
        )
    old, new = with_plan(old_record["settings"]), with_plan(record["settings"])
    old_versions = old_record.get("versions", {})
    changed = {name for name, version in record["versions"].items() if old_versions.get(name, version) != version}
    different = list(_differences(comparable(old), comparable(new), lenient=bool(changed & {"transformers", "peft"})))
    if different:
        lines = [f"  {name}: {_shown(before)} in the checkpoint, {_shown(now)} now" for name, before, now in different]
        raise ValueError(
            f"cannot resume from {str(checkpoint)!r}, {len(different)} settings differ:\n"
            + "\n".join(lines)
            + "\nuse the old values, or start a new run from its weights in another output_dir"
        )
    if new.get("ignore_data_skip"):
        raise ValueError(
            f"cannot resume from {str(checkpoint)!r} with ignore_data_skip=True: it would train on other batches than "
            "the ones that come next; set ignore_data_skip=False"
        )
    problems = _incomplete(folder, old, rank)
    if problems:
        raise ValueError(
            f"cannot resume from {str(checkpoint)!r}: {', '.join(problems)}, and without them the run would go on "
            "differently; resume from another checkpoint (save with save_only_model=False), or start a new run from "
            "its weights"
        )
    if old["world_size"] != new["world_size"]:
        logger.warning(
            "resuming on %d ranks a run of %d: the samples of each step stay the same, but random states (dropout) are "
            "kept per rank and start anew",
            new["world_size"],
            old["world_size"],
        )
    for package in sorted(changed):
        now, before = record["versions"][package], old_versions[package]
        logger.warning("resuming with %s %s a run of %s: results may differ in rounding", package, now, before)


def _differences(
    old: Mapping[str, Any], new: Mapping[str, Any], *, lenient: bool, prefix: str = ""
) -> Iterator[tuple[str, Any, Any]]:
    """(name, old value, new value), one per entry of nested settings.

    `lenient`: other versions of a library know other options, so below the top only those that both know count.
    """
    for name in sorted({*old, *new}):
        before, now = old.get(name), new.get(name)
        if before == now or (lenient and prefix and not (name in old and name in new)):
            continue
        if isinstance(before, dict) and isinstance(now, dict) and before and now:
            yield from _differences(before, now, lenient=lenient, prefix=f"{prefix}{name}.")
        else:
            yield prefix + name, before, now


def _shown(value: Any) -> str:
    """A value as messages show it; of a group of settings only the names."""
    if isinstance(value, dict):
        return ", ".join(value) or "none"
    return repr(value)


def _incomplete(folder: Path, settings: Mapping[str, Any], rank: int | None = None) -> list[str]:
    """What an exact continuation needs and the checkpoint does not have, in words."""
    problems = []
    if _read_json(folder / STATE_FILE) is None:
        problems.append(f"{STATE_FILE} is missing or broken")
    needed = []
    if not any(folder.glob("global_step*/")):  # DeepSpeed keeps optimizer and scheduler there
        # FSDP writes a folder optimizer_0, or one file optimizer.bin
        if not any(path.is_dir() or path.name == "optimizer.bin" for path in folder.glob("*optimizer*")):
            needed.append(OPTIMIZER_FILE)
        needed.append(SCHEDULER_FILE)
    world_size = settings.get("world_size") or 1
    if world_size == 1:
        needed.append("rng_state.pth")
    else:
        needed += [f"rng_state_{index}.pth" for index in (range(world_size) if rank is None else (rank,))]
    for name in needed:
        if not (folder / name).is_file():
            problems.append(f"{name} is missing")
        elif not zipfile.is_zipfile(folder / name):  # what torch.save writes, with its index at the end
            problems.append(f"{name} is broken (cut off while it was written?)")
    return problems


def check_weight_names(checkpoint: str | os.PathLike, model: nn.Module) -> None:
    """Raise if the checkpoint's files lack a weight of `model` under the model's own name for it.

    transformers renames the weights of some architectures when it saves (GPT-NeoX's lm_head), and a resuming Trainer
    looks for the new name, does not find it, and goes on with the weights that it began with.
    """
    names: set[str] = set()
    for path in Path(checkpoint).glob("model*.safetensors"):
        with safe_open(path, framework="pt") as file:
            names.update(file.keys())
    if not names:  # adapters alone, or weights that FSDP or DeepSpeed keep in their own way
        return
    tensors = model.state_dict(keep_vars=True)
    there = {id(tensor) for name, tensor in tensors.items() if name in names}
    parameters = {name for name, _ in model.named_parameters(remove_duplicate=False)}
    missing = sorted(name for name in parameters if name in tensors and id(tensors[name]) not in there)
    if missing:
        raise ValueError(
            f"cannot resume from {str(checkpoint)!r}: it holds no weight called {missing[0]!r} "
            f"({len(missing)} are missing; it holds {sorted(names - set(tensors))[:3]} instead), so resuming would go "
            "on with the weights that the model began with; start a new run from the checkpoint's weights"
        )


def latest_checkpoint(directory: str | os.PathLike, *, rank: int | None = None) -> Path:
    """The newest complete checkpoint in `directory`; `rank` as in `check_same_run`."""
    folder = Path(directory)
    found = []
    for path in folder.glob("checkpoint-*") if folder.is_dir() else ():
        number = re.fullmatch(r"checkpoint-(\d+)", path.name)
        if number and path.is_dir():
            found.append((int(number.group(1)), path))
    for _, path in sorted(found, reverse=True):
        record = _read_record(path)
        problems = [f"{RUN_FILE} is missing or broken"] if record is None else []
        problems += _incomplete(path, record["settings"] if record else {}, rank)
        if not problems:
            return path
        logger.warning("skipping %s: it is incomplete (%s)", path, ", ".join(problems))
    raise ValueError(f"no complete checkpoint in {str(directory)!r}; train without resuming, or give another folder")


def read_settings(folder: str | os.PathLike) -> dict[str, Any] | None:
    """The recorded settings of a checkpoint, or None."""
    record = _read_record(Path(folder))
    return None if record is None else record["settings"]


def _read_record(folder: Path) -> dict[str, Any] | None:
    record = _read_json(folder / RUN_FILE)
    return record if isinstance(record, dict) and isinstance(record.get("settings"), dict) else None


def _read_json(path: Path) -> dict[str, Any] | None:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
