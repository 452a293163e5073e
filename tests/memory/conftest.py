"""Makes the tiny models and data of tests/trainer importable."""

import sys
from pathlib import Path

sys.path[:0] = [str(Path(__file__).parent.parent / "trainer")]
