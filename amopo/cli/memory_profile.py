"""`amopo memory profile`: real steps of a model of random weights, measured, against the plan.

Writes profile.json, profile.png (stacked bars by phase with the card's limit, and live memory over time) and
profile.html into `--out`; on CUDA with `--snapshot` also snapshot.pickle for pytorch.org/memory_viz. On a CPU there is
no snapshot: CUDA's allocator makes it.
"""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

from amopo.cli.errors import CommandFailed, UsageError
from amopo.cli.memory_options import GIB, gib, gpu_memory_of, run_options, sample_of, settings_of, shape_from, table
from amopo.cli.models import need
from amopo.cli.options import Option, Settings
from amopo.memory.advice import changes
from amopo.memory.exhausted import is_out_of_memory, usable_bytes
from amopo.memory.plan import make_plan
from amopo.memory.settings import RunSettings, SampleShape
from amopo.memory.shapes import ModelShape, with_layers

# What `profile` refuses: one process on one device, with torch's AdamW.
_NOT_HERE = {"--gpus", "--engine", "--offload", "--optimizer"}
DESCRIPTION = "Real training steps of a model of random weights, measured by phase, against the plan."


def options() -> list[Option]:
    need("transformers", "hf")
    return [
        *run_options(),
        Option("layers", int | None, "run so many layers (default: all)", default=None),
        Option("device", str | None, "cpu or cuda (default: CUDA where it is)", default=None),
        Option("steps", int, "steps; the first is left out, as the optimizer makes its state in it", default=3),
        Option("gpu_memory", str | None, "draw this limit, as 80GB", default=None, metavar="SIZE"),
        Option("out", str, "folder for the results", default="runs/memory", metavar="DIR"),
        Option("snapshot", bool, "CUDA: also snapshot.pickle for pytorch.org/memory_viz", default=False),
        Option("json", bool, "print one JSON object, in bytes", default=False),
    ]


def run(settings: Settings) -> None:
    import torch

    from amopo.memory.profile import profile, record
    from amopo.trainer.forward import patch_forward

    device = settings.device or ("cuda" if torch.cuda.is_available() else "cpu")
    shape, sample = shape_from(settings), sample_of(settings)
    asked = settings_of(settings, device=device)
    limit = gpu_memory_of(settings)
    if settings.layers is not None:
        if settings.layers < 1:
            raise UsageError(f"--layers must be at least 1, got {settings.layers}")
        shape = with_layers(shape, settings.layers)
    if asked.lora is not None:
        need("peft", "peft")
    out = Path(settings.out)
    out.mkdir(parents=True, exist_ok=True)
    snapshot = out / "snapshot.pickle" if settings.snapshot else None
    try:
        found = profile(shape, sample, asked, patch=patch_forward, steps=settings.steps, snapshot=snapshot)
    except RuntimeError as error:
        if not is_out_of_memory(error):
            raise
        usable = usable_bytes(torch.device(device))
        known = [size for size in (limit, usable) if size is not None]
        raise CommandFailed(_explained(error, shape, sample, asked, min(known, default=None))) from error
    result = {**record(found), "gpu_memory": limit}
    (out / "profile.json").write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    written = [out / "profile.json"]
    try:
        from amopo.report.memory import write_html, write_picture

        written += [write_picture(result, out / "profile.png"), write_html(result, out / "profile.html")]
    except ImportError:
        written.append("(no picture: pip install 'amopo[plot]')")
    if settings.json:
        print(json.dumps(result, indent=1))
        return
    rows = [
        [phase, f"{peak / GIB:.3f}", f"{found.plan.total(phase) / GIB:.3f}",
         f"{100 * (found.plan.total(phase) / peak - 1):+.1f} %",
         f"{found.resident[phase] / GIB:.3f}" if phase in found.resident else ""]
        for phase, peak in found.peaks.items()
    ]  # fmt: skip
    print(
        f"{shape.name}, {shape.parameters / 1e6:.0f} million parameters, {found.plan.row.tokens} tokens, {found.device}"
    )
    print(table(["phase, GiB", "measured", "planned", "difference", "resident"], rows))
    print(
        f"peak: {gib(found.peak)} GiB measured, {gib(found.plan.peak)} planned; {found.tokens_per_second:.0f} tokens/s"
    )
    if found.resident_before is not None:
        print(f"resident before the model was built: {found.resident_before / GIB:.3f} GiB")
    if found.reserved is not None:
        print(f"reserved by the allocator: {gib(found.reserved)} GiB")
    for path in written:
        print(path)
    if snapshot is not None:
        print(f"{snapshot} (drop it on pytorch.org/memory_viz)")
    elif device == "cpu":
        print("(no snapshot for memory_viz: CUDA's allocator makes it, and this ran on a CPU)")


def _explained(
    error: BaseException, shape: ModelShape, sample: SampleShape, asked: RunSettings, limit: int | None
) -> str:
    """What was asked for, the plan's view, and up to three single changes that would fit and that this command can run.

    Where none fits, or no limit is known, those that take least.
    """
    plan = make_plan(shape, sample, asked)
    asked_for = " ".join(str(error).split("\n")[0].split()).rstrip(".")
    said = [
        f"out of memory: {asked_for}. By the plan a row of {plan.row.tokens} tokens takes {plan.peak / GIB:.2f} GiB, "
        f"in the phase {plan.peak_phase!r}" + (f", of {limit / GIB:.2f}" if limit is not None else "")
    ]
    not_here = _NOT_HERE if importlib.util.find_spec("peft") is not None else _NOT_HERE | {"--lora"}
    able = [change for change in changes(shape, sample, asked) if not not_here & set(change.label.split())]
    fitting = [change for change in able if limit is not None and change.peak <= limit]
    word = "These take least"
    if limit is not None:
        word = "These would fit" if fitting else "No single change would fit; these take least"
    listed = "; ".join(f"{change.label} ({change.peak / GIB:.2f} GiB)" for change in (fitting or able)[:3])
    return ". ".join([*said, f"{word}: {listed}"] if listed else said)
