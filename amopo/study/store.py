"""Results of a study on disk, one file per seed and method, so that a stopped study goes on.

Contract
--------
`Store(folder, settings)`: `save(seed, method, result)` writes `seed-S/METHOD.json` in one piece (a killed study leaves
a whole file or none); `load(seed, method)` gives it back, or None where there is none yet. Every file carries the
settings it was made with; one that was made with others raises ValueError, which names the file and what differs.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any


class Store:
    def __init__(self, folder: str | os.PathLike[str], settings: Mapping[str, Any]) -> None:
        self.folder = Path(folder)
        # As JSON gives it back: tuples are lists there.
        self.settings = json.loads(json.dumps(dict(settings)))

    def seed_folder(self, seed: int) -> Path:
        return self.folder / f"seed-{seed}"

    def path(self, seed: int, method: str) -> Path:
        return self.seed_folder(seed) / f"{method}.json"

    def save(self, seed: int, method: str, result: Mapping[str, Any]) -> None:
        path = self.path(seed, method)
        path.parent.mkdir(parents=True, exist_ok=True)
        unfinished = path.with_suffix(".part")
        text = json.dumps({"settings": self.settings, "seed": seed, "method": method, **result})
        unfinished.write_text(text + "\n", encoding="utf-8")
        os.replace(unfinished, path)

    def load(self, seed: int, method: str) -> dict[str, Any] | None:
        path = self.path(seed, method)
        if not path.exists():
            return None
        try:
            found = json.loads(path.read_text(encoding="utf-8"))
        except (json.JSONDecodeError, UnicodeDecodeError):
            raise ValueError(f"{path} is no result of a study; delete it and run the study again") from None
        made_with = found.get("settings") if isinstance(found, dict) else None
        if not isinstance(made_with, dict):
            raise ValueError(f"{path} is no result of a study; delete it and run the study again")
        names = sorted({*made_with, *self.settings})
        changed = [name for name in names if made_with.get(name) != self.settings.get(name)]
        if changed:
            name = changed[0]
            raise ValueError(
                f"{path} was made with {name}={made_with.get(name)!r}, this study has {name}="
                f"{self.settings.get(name)!r}; name another folder with --out, or delete this one"
            )
        return found
