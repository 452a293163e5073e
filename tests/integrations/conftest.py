"""Makes the tiny models and runs of tests/trainer, the watches of tests/kernels and the examples importable."""

import os
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
for folder in ("tests/trainer", "tests/kernels", "examples"):
    sys.path.insert(0, str(ROOT / folder))
os.environ.setdefault("TRL_EXPERIMENTAL_SILENCE", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
