"""Committed results to docs/benchmarks.md: `python -m bench.report`.

Replaces what stands between the two markers of the document and draws its pictures beside it. A device whose folder
holds no result of real shapes says "pending"; so does an expected device without a folder. Below it stands what the
head must at least take there, where that is calculated (`bench.common.calculated`).
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from bench.common.calculated import CALCULATED, calculated_section, measured_shares
from bench.common.machine import slug
from bench.common.markers import between
from bench.common.plots import plot_head
from bench.common.tables import device_section, read_device
from bench.common.targets import target_section

BEGIN, END = "<!-- results: begin (python -m bench.report) -->", "<!-- results: end -->"
EXPECTED = ("NVIDIA H200", "NVIDIA A100-SXM4-80GB")


def render(results: Path, pictures: Path, expected: tuple[str, ...] = EXPECTED, *, draw: bool = True) -> str:
    """Markdown of all devices below `results`; pictures are drawn in `pictures` (else linked if there)."""
    parts = []
    # What `amopo demo --seeds` found stands in docs/study.md, what is planned in docs/memory.md.
    elsewhere = ("study", "memory")
    folders = (
        sorted(path for path in results.iterdir() if path.is_dir() and path.name not in elsewhere)
        if results.is_dir()
        else []
    )
    found_in = {folder: read_device(folder) for folder in folders}
    names = {folder: next(iter(f.values()))["runs"][-1]["machine"]["device"] for folder, f in found_in.items() if f}
    shares = measured_shares({names[folder]: found for folder, found in found_in.items() if found})

    def pending(title: str, of_what: str) -> str:
        bounds = [calculated_section(name, shares) for name in CALCULATED if slug(name) == slug(title)]
        return "\n\n".join([f"## {title}", f"pending: no result {of_what} yet.", *bounds])

    for folder, found in found_in.items():
        if not found:
            parts.append(pending(folder.name, "of real shapes"))
            continue
        name = names[folder]
        links = []
        for question in ("head_full", "head_frozen"):
            picture = pictures / f"{folder.name}-{question}.svg"
            if draw:
                pictures.mkdir(parents=True, exist_ok=True)
            if question in found and (plot_head(found[question], picture) if draw else picture.exists()):
                links.append(f"![{question} on {name}]({pictures.name}/{picture.name})")
        section = device_section(name, found)
        first = [*links, target_section(found)]
        title, rest = section.split("\n", 1)
        section = "\n\n".join([title, *filter(None, first)]) + "\n" + rest
        parts.append(section)
    there = {folder.name for folder in folders}
    parts += [pending(name, "on this device") for name in expected if slug(name) not in there]
    return "\n\n".join(parts)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.report", description=__doc__.splitlines()[0])
    parser.add_argument("--results", type=Path, default=Path("bench/results"))
    parser.add_argument("--document", type=Path, default=Path("docs/benchmarks.md"))
    parser.add_argument("--check", action="store_true", help="change nothing; fail if the document is not up to date")
    options = parser.parse_args(arguments)
    before = options.document.read_text(encoding="utf-8")
    pictures = options.document.parent / "benchmarks"
    text = render(options.results, pictures, draw=not options.check)
    after = between(before, BEGIN, END, text, name=str(options.document))
    if options.check:
        if after != before:
            print(f"{options.document} is not what the results say; run python -m bench.report", file=sys.stderr)
        return int(after != before)
    options.document.write_text(after, encoding="utf-8")
    print(f"wrote {options.document}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
