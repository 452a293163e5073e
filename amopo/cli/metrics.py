"""`metrics.json`: what a run says of itself, in numbers.

Contract: `write_metrics(folder, metrics)` writes the file, whole or not at all, in the main process; what JSON cannot
hold becomes text. `about_run(job)`, `about_model(job, model, tokenizer)` -> its entries "settings" and "model".
"""

from __future__ import annotations

import dataclasses
import json
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from amopo.cli.console import is_main_process
from amopo.cli.output_dir import METRICS_FILE
from amopo.trainer.identity import dtypes_of, numel

if TYPE_CHECKING:
    from amopo.cli.job import Job


def write_metrics(folder: Path, metrics: Mapping[str, Any]) -> Path:
    path = folder / METRICS_FILE
    if is_main_process():
        path.parent.mkdir(parents=True, exist_ok=True)
        unfinished = path.with_suffix(".tmp")
        unfinished.write_text(json.dumps(_plain(metrics), indent=2) + "\n", encoding="utf-8")
        os.replace(unfinished, path)
    return path


def about_run(job: Job) -> dict[str, Any]:
    own = {
        name: getattr(job, name)
        for name in ("model", "template", "max_prompt_length", "max_response_length", "dtype", "lora_r", "lora_alpha")
    }
    scales = {name: [scale.low, scale.high] for name, scale in job.inputs.scales.items()}
    return {**own, "scales": scales, **job.args.to_dict()}


def about_model(job: Job, model: Any, tokenizer: Any) -> dict[str, Any]:
    return {
        "name": job.model,
        "class": type(model).__name__,
        "parameters": sum(map(numel, model.parameters())),
        "trained parameters": sum(numel(p) for p in model.parameters() if p.requires_grad),
        "dtypes": dtypes_of(model),
        "tokens": len(tokenizer),
    }


def _plain(value: Any) -> Any:
    """JSON has no NaN or infinity, and no keys but text."""
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    if value is None or isinstance(value, bool | int | float | str):
        return value
    return dataclasses.asdict(value) if dataclasses.is_dataclass(value) else str(value)
