"""What torchrun starts on each rank: LLaMA-Factory's training, after `install()`.

LLaMA-Factory's launcher starts a file by its path, not a module; see `installation`.
"""

from __future__ import annotations

import sys
from pathlib import Path


def main() -> None:
    # torchrun put this file's folder in front, where `data` or `trainer` would be found as modules of those names.
    here = Path(__file__).resolve().parent
    sys.path[:] = [entry for entry in sys.path if Path(entry).resolve() != here]
    from amopo.integrations.llamafactory.installation import install

    install()
    from llamafactory.train.tuner import run_exp

    run_exp()


if __name__ == "__main__":
    main()
