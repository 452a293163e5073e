"""Folders as runs leave them, made from numbers that a test knows."""

from __future__ import annotations

import json
from pathlib import Path

OBJECTIVES = ["correctness", "brevity", "tone"]


def training_row(step: int, objectives: list[str], *, shift: float = 0.0) -> dict:
    """Every metric that the trainer logs, each a number of its own."""
    row: dict = {"step": step, "epoch": step / 100, "loss": 0.7 - step / 200, "grad_norm": 1.0, "learning_rate": 1e-5}
    for number, name in enumerate(objectives):
        chosen = -1.0 - 0.01 * step + shift
        margin = 0.1 * (number + 1) + 0.02 * step + shift
        row |= {
            f"rewards/chosen/{name}": chosen,
            f"rewards/rejected/{name}": chosen - margin,
            f"rewards/margins/{name}": margin,
            f"rewards/accuracies/{name}": 0.6,
            f"logps/chosen/{name}": -10.0 - 0.1 * step - number,
            f"logps/rejected/{name}": -9.0 - 0.3 * step - number,
            f"amopo/alpha/{name}": 1 / len(objectives),
            f"amopo/alpha_std/{name}": 0.05 * (number + 1),
        }
    for key in ("rewards/chosen", "rewards/rejected", "rewards/margins", "rewards/accuracies", "logps/chosen"):
        row[key] = sum(row[f"{key}/{name}"] for name in objectives) / len(objectives)
    row["logps/rejected"] = sum(row[f"logps/rejected/{name}"] for name in objectives) / len(objectives)
    row |= {"tokens_per_second": 1000.0 + step, "represented_tokens_per_second": 2000.0 + step}
    return row | {"amopo/fill": 0.9, "amopo/sharing": 2.0, "amopo/peak_memory_gib": 1.5}


def rows(count: int = 12, objectives: list[str] = OBJECTIVES, *, every: int = 2, shift: float = 0.0) -> list[dict]:
    return [training_row(step, objectives, shift=shift) for step in range(every, every * count + 1, every)]


def preferences(objectives: list[str], value: float) -> dict:
    keys = ("rewards/margins", "rewards/accuracies")
    return {f"{key}{suffix}": value for key in keys for suffix in ("", *(f"/{name}" for name in objectives))}


def metrics(objectives: list[str] = OBJECTIVES, **changes) -> dict:
    """A finished run's metrics.json."""
    made = {
        "command": "train",
        "finished": True,
        "versions": {"amopo": "0.1", "torch": "2.13.0"},
        "machine": {"processors": 2},
        "settings": {"objectives": objectives, "beta": 0.8, "seed": 0, "max_steps": 24, "output_dir": "somewhere"},
        "model": {"name": "scratch:nano", "class": "Qwen2ForCausalLM", "parameters": 1_500_000},
        "data": {"evaluation": {"pairs": {"pairs": 3}}},
        "preferences": {"before": preferences(objectives, 0.25), "after": preferences(objectives, 0.75)},
        "samples": {
            "before": [{"prompt": "Say hello.", "response": "uh"}],
            "after": [{"prompt": "Say hello.", "response": "Hello."}],
        },
        "log_history": rows(objectives=objectives),
        "seconds": {"train": 75.0},
    }
    made |= changes
    return {name: value for name, value in made.items() if value is not None}


def with_scores(found: dict, scores: dict[str, tuple[float, float]]) -> dict:
    """Adds generated scores, before and after, as the demo measures them."""
    found["generation"] = {
        when: {"drawn": {"plain": {name: {"mean": ends[at], "error": 0.1} for name, ends in scores.items()}}}
        for at, when in enumerate(("before", "after"))
    }
    return found


def write_json(path: Path, value: object) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value), encoding="utf-8")
    return path


def write_log(path: Path, logged: list[dict], *, tail: str = "") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in logged) + tail, encoding="utf-8")
    return path


def write_run(folder: Path, found: dict | None = None) -> Path:
    write_json(folder / "metrics.json", metrics() if found is None else found)
    return folder
