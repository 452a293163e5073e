"""Makes the workers of this folder, and the tiny models and data of tests/trainer, importable."""

import sys
from pathlib import Path

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE), str(HERE.parent / "trainer")]
