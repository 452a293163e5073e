"""A run's identity: what must be the same for a resumed run to be the same run.

Contract
--------
`amopo_run.json`, written into the output directory and into each checkpoint, holds the settings that decide the result
(`SETTINGS`), the fingerprint of the training data, and the versions that ran. `check_same_run(checkpoint, record)`
raises one ValueError that lists every setting that differs, with its old and new value. `latest_checkpoint(directory)`
finds the newest checkpoint that was written to its end: a run that was killed while saving leaves a broken one behind.

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
from pathlib import Path
from typing import Any

logger = logging.getLogger(__name__)

RUN_FILE = "amopo_run.json"
STATE_FILE = "trainer_state.json"  # transformers writes it last, after weights, optimizer and random states

SETTINGS = (
    "objectives",
    "objective",
    "beta",
    "gamma",
    "weights",
    "objective_weights",
    "pooled",
    "tokens_per_batch",
    "max_samples_per_batch",
    "sharing",
    "noise_seed",
    "logits_dtype",
    "seed",
    "data_seed",
    "gradient_accumulation_steps",
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
    "world_size",
)
_PACKAGES = ("torch", "transformers", "accelerate", "peft")


def run_record(args: Any, *, data_fingerprint: str, num_samples: int, model_class: str) -> dict[str, Any]:
    """Settings, data and versions of a run, as plain JSON values."""
    settings = {name: _plain(getattr(args, name)) for name in SETTINGS if hasattr(args, name)}
    settings["data_fingerprint"] = data_fingerprint
    settings["num_samples"] = num_samples
    settings["model_class"] = model_class
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


def check_same_run(checkpoint: str | os.PathLike, record: dict[str, Any]) -> None:
    """Raise if the checkpoint belongs to a run with other settings or data."""
    path = Path(checkpoint) / RUN_FILE
    if not Path(checkpoint).is_dir():
        raise ValueError(f"checkpoint {str(checkpoint)!r} does not exist; give the path of a checkpoint folder")
    old_record = _read_json(path)
    if old_record is None:
        raise ValueError(
            f"cannot resume from {str(checkpoint)!r}: {RUN_FILE} is missing or broken, so it is not known how this "
            "checkpoint was made; start a new run from its weights instead"
        )
    old, new = old_record["settings"], record["settings"]
    different = [name for name in sorted({*old, *new}) if old.get(name) != new.get(name)]
    if different:
        lines = [f"  {name}: {old.get(name)!r} in the checkpoint, {new.get(name)!r} now" for name in different]
        raise ValueError(
            f"cannot resume from {str(checkpoint)!r}, {len(different)} settings differ:\n"
            + "\n".join(lines)
            + "\nuse the old values, or start a new run from its weights in another output_dir"
        )
    for package, version in sorted(record["versions"].items()):
        before = old_record.get("versions", {}).get(package)
        if before is not None and before != version:
            logger.warning("resuming with %s %s a run of %s: results may differ in rounding", package, version, before)


def latest_checkpoint(directory: str | os.PathLike) -> Path:
    """The newest complete checkpoint in `directory`."""
    folder = Path(directory)
    found = []
    for path in folder.glob("checkpoint-*") if folder.is_dir() else ():
        number = re.fullmatch(r"checkpoint-(\d+)", path.name)
        if number and path.is_dir():
            found.append((int(number.group(1)), path))
    for _, path in sorted(found, reverse=True):
        if _read_json(path / STATE_FILE) is not None and _read_json(path / RUN_FILE) is not None:
            return path
        logger.warning("skipping %s: it was not written to its end", path)
    raise ValueError(f"no complete checkpoint in {str(directory)!r}; train without resuming, or give another folder")


def _read_json(path: Path) -> dict[str, Any] | None:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
