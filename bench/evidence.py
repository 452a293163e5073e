"""GPU tests and benchmarks in named parts, each under nine minutes: `python -m bench.evidence --out DIR [--part NAME]`.

Results (`DIR/<device>/<question>.json`) and logs (`DIR/<part>.log`) are written while a part runs, so that a killed one
loses its last measurement at most. Needs torch, triton, pytest and pytest-benchmark, and a checkout with
PYTHONPATH=.:kernels; peers that are not installed are skipped by name. `--dry-run` goes through all parts with small
shapes on whatever machine this is.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import time
from pathlib import Path

SECONDS = 8 * 60 + 45
PARTS: dict[str, tuple[str, ...]] = {
    "tests": ("tests/gpu",),
    "small": (
        "bench/test_row_pass.py", "bench/test_objective.py", "bench/test_launches.py", "bench/test_compaction.py",
        "--full", "--shape", "7b-8192",
    ),
    "head-full-7b": ("bench/test_head.py", "-k", "test_full", "--full", "--shape", "2.5-7b"),
    "head-frozen-7b": ("bench/test_head.py", "-k", "test_frozen", "--full", "--shape", "2.5-7b"),
    "head-full-14b": ("bench/test_head.py", "-k", "test_full", "--full", "--shape", "14b"),
    "head-frozen-14b": ("bench/test_head.py", "-k", "test_frozen", "--full", "--shape", "14b"),
    "memory": ("bench/test_memory.py", "--full", "--shape", "8192"),
}  # fmt: skip


def command_of(part: str, out: Path, dry_run: bool) -> list[str]:
    """The pytest command of a part. The ini's strictness is left out: a bare machine lacks some plugins it names."""
    words = list(PARTS[part])
    if dry_run and "--full" in words:
        words.remove("--full")
        if "--shape" in words:
            del words[words.index("--shape") : words.index("--shape") + 2]
    command = [sys.executable, "-m", "pytest", *words, "-q", "-p", "no:cacheprovider"]
    command += ["-o", "addopts=-ra --import-mode=importlib", "-W", "ignore::pytest.PytestConfigWarning"]
    if part != "tests":
        command += ["--benchmark-columns=median,min,rounds", "--bench-results", str(out)]
    return command


def run_part(part: str, out: Path, *, dry_run: bool, seconds: float) -> int:
    """Run one part within its time; its exit code, 124 if it ran out of time."""
    out.mkdir(parents=True, exist_ok=True)
    environment = {**os.environ, "PYTHONUNBUFFERED": "1"}
    environment.setdefault("PYTHONPATH", f".{os.pathsep}kernels")
    if dry_run:
        environment["AMOPO_DRY_RUN"] = "1"
    started = time.monotonic()
    with open(out / f"{part}.log", "wb") as log:
        try:
            done = subprocess.run(
                command_of(part, out, dry_run), stdout=log, stderr=subprocess.STDOUT, env=environment, timeout=seconds
            )
            code = done.returncode
        except subprocess.TimeoutExpired:
            code = 124
    tail = (out / f"{part}.log").read_text(encoding="utf-8", errors="replace").strip().splitlines()[-1:]
    print(f"{part}: exit {code} after {time.monotonic() - started:.0f} s; {' '.join(tail)}", flush=True)
    return code


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.evidence", description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True, help="folder for results and logs")
    parser.add_argument("--part", choices=sorted(PARTS), help="only this part (default: all, in order)")
    parser.add_argument("--seconds", type=float, default=SECONDS, help="limit of a part")
    parser.add_argument("--dry-run", action="store_true", help="small shapes, on any machine")
    options = parser.parse_args(arguments)
    names = [options.part] if options.part else list(PARTS)
    codes = [run_part(name, options.out, dry_run=options.dry_run, seconds=options.seconds) for name in names]
    return max(codes)


if __name__ == "__main__":
    sys.exit(main())
