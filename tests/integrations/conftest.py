"""Makes importable what tests share here, in tests/trainer (tiny models), tests/kernels (watches); the examples."""

import os
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
for folder in ("tests/integrations", "tests/trainer", "tests/kernels", "examples"):
    sys.path.insert(0, str(ROOT / folder))
os.environ.setdefault("TRL_EXPERIMENTAL_SILENCE", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
