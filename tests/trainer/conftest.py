"""Makes `tiny_runs`, the tiny models and data of this folder, importable for tests and for the processes they start."""

import os
import sys

sys.path.insert(0, os.path.dirname(__file__))
