"""GPU tests and benchmarks in named parts, each under nine minutes: `python -m bench.evidence --out DIR [--part NAME]`.

Results (`DIR/<device>/<question>.json`) and logs (`DIR/<part>.log`) are written while a part runs, so that a killed one
loses its last measurement at most. Needs torch, triton, pytest and pytest-benchmark, and a checkout; peers that are not
installed are skipped by name. Parts stand in the order of their weight: where time runs out, the last ones go.

    --part small --part head-full-7b       these parts, in this order
    --within 580                           all of it in so many seconds; parts that no longer fit are named, exit 124
    --shape 7b-8192 --providers products   any option of the benchmarks is handed on; `--shape` narrows a part, and
                                           parts without such a shape are left out by name
    --dry-run                              all parts with small shapes, on whatever machine this is
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import time
from pathlib import Path

from bench.common.memory_cases import memory_cases_with
from bench.common.session import shapes_with, step_shapes_with

SECONDS = 8 * 60 + 45
OUT_OF_TIME = 124
LEAST_SECONDS = 60.0  # a part that has less is not begun
PARTS: dict[str, tuple[str, ...]] = {
    "tests": ("tests/gpu",),
    "small": (
        "bench/test_row_pass.py", "bench/test_objective.py", "bench/test_launches.py", "bench/test_compaction.py",
        "--full", "--shape", "7b-8192",
    ),
    "head-full-7b": ("bench/test_head.py", "-k", "test_full", "--full", "--shape", "2.5-7b"),
    "step-0.5b": ("bench/test_step.py", "--full", "--shape", "2.5-0.5b"),
    "step-7b": ("bench/test_step.py", "--full", "--shape", "2.5-7b"),
    "attention": ("bench/test_attention.py", "--full"),
    "head-frozen-7b": ("bench/test_head.py", "-k", "test_frozen", "--full", "--shape", "2.5-7b"),
    "memory-32b": ("bench/test_memory.py", "-k", "test_model", "--full", "--shape", "2.5-32b"),
    "memory-32b-largest": (
        "bench/test_memory.py", "-k", "test_largest and (pair or plain or released)", "--full", "--shape", "2.5-32b",
    ),
    "memory-7b": ("bench/test_memory.py", "-k", "test_model", "--full", "--shape", "2.5-7b"),
    "memory-14b": ("bench/test_memory.py", "-k", "test_model", "--full", "--shape", "2.5-14b"),
    "memory-32b-largest-more": (
        "bench/test_memory.py", "-k", "test_largest and (none or tree)", "--full", "--shape", "2.5-32b",
    ),
    "memory-head": ("bench/test_memory_head.py", "--full", "--shape", "8192"),
    "head-full-14b": ("bench/test_head.py", "-k", "test_full", "--full", "--shape", "14b"),
    "head-frozen-14b": ("bench/test_head.py", "-k", "test_frozen", "--full", "--shape", "14b"),
}  # fmt: skip


def command_of(part: str, out: Path, dry_run: bool, more: tuple[str, ...] = ()) -> list[str]:
    """The pytest command of a part. The ini's strictness is left out: a bare machine lacks some plugins it names.

    `more` goes to the benchmarks; the GPU tests know none of their options.
    """
    words = [*PARTS[part], *(more if part != "tests" else ())]
    if dry_run and "--full" in words:
        words.remove("--full")
        while "--shape" in words:
            del words[words.index("--shape") : words.index("--shape") + 2]
    command = [sys.executable, "-m", "pytest", *words, "-q", "-p", "no:cacheprovider"]
    command += ["-o", "addopts=-ra --import-mode=importlib", "-W", "ignore::pytest.PytestConfigWarning"]
    if part != "tests":
        command += ["--benchmark-columns=median,min,rounds", "--bench-results", str(out)]
    return command


def has_shapes(part: str, more: tuple[str, ...]) -> bool:
    """Whether a GPU shape is left when `--shape` of the part and of `more` both hold."""
    words = (*PARTS[part], *more)
    texts = [text for option, text in zip(words, words[1:]) if option == "--shape"]
    if "bench/test_memory.py" in words:
        return bool(memory_cases_with(texts, "cuda"))
    of_models = part.startswith(("step", "attention"))
    return part == "tests" or bool((step_shapes_with if of_models else shapes_with)(texts, "cuda"))


def search_path(given: str | None) -> str:
    """PYTHONPATH of the parts: the checkout, then what the caller gave (unpacked wheels of peers)."""
    own = [".", "kernels"]
    return os.pathsep.join([*own, *(entry for entry in (given or "").split(os.pathsep) if entry not in (*own, ""))])


def run_part(part: str, out: Path, *, dry_run: bool, seconds: float, more: tuple[str, ...] = ()) -> int:
    """Run one part within its time; its exit code, 124 if it ran out of time, 128 + n if signal n ended it."""
    out.mkdir(parents=True, exist_ok=True)
    environment = {**os.environ, "PYTHONUNBUFFERED": "1", "PYTHONPATH": search_path(os.environ.get("PYTHONPATH"))}
    if dry_run:
        environment["AMOPO_DRY_RUN"] = "1"
    started = time.monotonic()
    with open(out / f"{part}.log", "wb") as log:
        try:
            done = subprocess.run(
                command_of(part, out, dry_run, more), stdout=log, stderr=subprocess.STDOUT, env=environment,
                timeout=seconds,
            )  # fmt: skip
            code = done.returncode if done.returncode >= 0 else 128 - done.returncode
        except subprocess.TimeoutExpired:
            code = OUT_OF_TIME
    tail = (out / f"{part}.log").read_text(encoding="utf-8", errors="replace").strip().splitlines()[-1:]
    print(f"{part}: exit {code} after {time.monotonic() - started:.0f} s; {' '.join(tail)}", flush=True)
    return code


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m bench.evidence", description=__doc__.splitlines()[0], allow_abbrev=False,
        epilog="Other options go to the benchmarks, e.g. --shape 7b-8192 --providers products,amopo.",
    )  # fmt: skip
    parser.add_argument("--out", type=Path, required=True, help="folder for results and logs")
    parser.add_argument("--part", choices=list(PARTS), action="append", help="only this part (default: all, in order)")
    parser.add_argument("--seconds", type=float, default=SECONDS, help="limit of a part")
    parser.add_argument("--within", type=float, default=float("inf"), help="limit of all parts together, in seconds")
    parser.add_argument("--dry-run", action="store_true", help="small shapes, on any machine")
    options, rest = parser.parse_known_args(arguments)
    # "--shape=TEXT" as two words, so that there is one spelling to look for
    more = tuple(word for text in rest for word in (text.split("=", 1) if text.startswith("--shape=") else [text]))
    chosen = options.part or list(PARTS)
    names = [name for name in chosen if has_shapes(name, more)]
    if not names:
        parser.error(f"no part has a shape that contains what {' '.join(rest)} asks for")
    for name in chosen:
        if name not in names:
            print(f"{name}: left out, it has no such shape", flush=True)
    stop = time.monotonic() + options.within
    codes = []
    for name in names:
        seconds = min(options.seconds, stop - time.monotonic())
        if seconds < min(LEAST_SECONDS, options.seconds):
            print(f"{name}: not run, no time is left", flush=True)
            codes.append(OUT_OF_TIME)
            continue
        codes.append(run_part(name, options.out, dry_run=options.dry_run, seconds=seconds, more=more))
    return next((code for code in codes if code), 0)


if __name__ == "__main__":
    sys.exit(main())
