"""What examples/cluster/small.yaml trains on: generated preference data, in one folder.

python examples/cluster/prepare.py runs/cluster
"""

from __future__ import annotations

import argparse
from pathlib import Path

from amopo.data.verifiable import generate_tasks, write_grouped_jsonl


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("out", type=Path)
    parser.add_argument("--count", type=int, default=64, help="how many tasks to generate")
    options = parser.parse_args()

    options.out.mkdir(parents=True, exist_ok=True)
    path = options.out / "preferences.jsonl"
    write_grouped_jsonl(path, generate_tasks(options.count, seed=0), seed=0)
    print(f"{options.count} prompts in {path}")


if __name__ == "__main__":
    main()
