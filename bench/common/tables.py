"""Result files of one device as markdown tables: what docs/benchmarks.md shows."""

from __future__ import annotations

from bench.common.results import load

FLOORS = ("products_fp32", "products")
GRADIENT_LIMIT = 1e-2  # whoever has a larger gradient error is no comparison for speed, ours included


def read_device(folder) -> dict[str, dict]:
    """Result files of a device by question, without measurements of small shapes: those only show that all runs."""
    found = {}
    for path in sorted(folder.glob("*.json")):
        data = load(path)
        data["records"] = [record for record in data["records"] if not record["key"].get("small")]
        if data["records"]:
            found[data["question"]] = data
    return found


def milliseconds(seconds: float) -> str:
    value = seconds * 1e3
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def megabytes(count: int | None) -> str:
    return "" if count is None else f"{count / 2**20:,.0f}"


def error(value) -> str:
    return "" if value is None else (f"{value:.1e}" if isinstance(value, float) else str(value))


def table(header: list[str], rows: list[list[str]]) -> str:
    lines = ["| " + " | ".join(header) + " |", "|" + "|".join("---" for _ in header) + "|"]
    return "\n".join(lines + ["| " + " | ".join(row) + " |" for row in rows])


def grouped(records: list[dict], *names: str) -> dict[tuple, list[dict]]:
    groups: dict[tuple, list[dict]] = {}
    for record in records:
        groups.setdefault(tuple(record["key"].get(name) for name in names), []).append(record)
    return groups


def floor_of(records: list[dict]) -> tuple[str, float] | None:
    """The fastest set of bare products of a group: (provider, median)."""
    measured = [r for r in records if "stats" in r and r["info"].get("role") == "floor"]
    floors = [(r["stats"]["median"], r["key"]["provider"]) for r in measured]
    return min(floors)[::-1] if floors else None


def gradient_error(info: dict) -> float:
    """The larger of the two relative errors; infinite where one is not a number."""
    values = [info[name] for name in ("grad_hidden_error", "grad_weight_error") if name in info]
    return max((v if isinstance(v, float) else float("inf") for v in values), default=float("inf"))


def fastest(records: list[dict], role: str) -> dict | None:
    """The fastest of a role that computes gradients to `GRADIENT_LIMIT`."""
    right = [
        r for r in records
        if "stats" in r and r["info"]["role"] == role and gradient_error(r["info"]) < GRADIENT_LIMIT
    ]  # fmt: skip
    return min(right, key=lambda r: r["stats"]["median"], default=None)


def head_section(data: dict) -> str:
    parts = []
    for (shape, dtype, inputs), records in grouped(data["records"], "shape", "dtype", "inputs").items():
        measured = sorted((r for r in records if "stats" in r), key=lambda r: r["stats"]["median"])
        floor = floor_of(records)
        rows = []
        for record in measured:
            stats, info = record["stats"], record["info"]
            rows.append([
                f"**{record['key']['provider']}**" if info["role"] == "ours" else record["key"]["provider"],
                info["role"], milliseconds(stats["median"]),
                f"{stats['median'] / floor[1]:.2f}x" if floor else "", f"{info['tflops']:.3g}",
                error(info.get("logp_error")), error(info.get("grad_hidden_error")),
                error(info.get("grad_weight_error")), megabytes(info.get("peak_bytes_beyond_dw")),
                megabytes(info.get("resident_bytes")), ", ".join(info["over_limit"]) or "",
            ])  # fmt: skip
        header = [
            "provider", "role", "median ms", "to the floor", "TFLOP/s", "max abs logp error", "dH error", "dW error",
            "peak MB beyond dW", "RSS MB", "over the limit",
        ]  # fmt: skip
        entropy = next((r["info"]["entropy"] for r in measured if r["info"].get("entropy")), None)
        title = f"#### {shape}, {dtype}, {inputs} logits" + (f" (entropy {entropy:.2f} nats)" if entropy else "")
        lines = [title, "", table(header, rows)]
        ours, peer = fastest(records, "ours"), fastest(records, "peer")
        if ours and peer and floor:
            ratio = peer["stats"]["median"] / ours["stats"]["median"]
            lines += [
                "", f"{ours['key']['provider']} takes {ours['stats']['median'] / floor[1]:.2f}x of the floor "
                f"({floor[0]}). The fastest peer with gradient errors under {GRADIENT_LIMIT:g}, "
                f"{peer['key']['provider']}, takes {ratio:.2f}x of its time.",
            ]  # fmt: skip
        lines += [*budget_lines(measured), *skipped_lines(records)]
        parts.append("\n".join(lines))
    return "\n\n".join(parts)


def budget_lines(measured: list[dict]) -> list[str]:
    """Bytes of those that were given another budget than the default."""
    given = [r for r in measured if r["info"].get("budget_bytes")]
    words = [
        f"{r['key']['provider']}: a budget of {megabytes(r['info']['budget_bytes'])} MB, workspace_bytes "
        f"{megabytes(r['info']['workspace_bytes'])} MB" for r in given
    ]  # fmt: skip
    return ["", "; ".join(words) + "."] if words else []


def skipped_lines(records: list[dict]) -> list[str]:
    skipped = [f"{r['key']['provider']} ({r['skipped']})" for r in records if "skipped" in r]
    return ["", "Not measured: " + "; ".join(skipped) + "."] if skipped else []


def plain_section(data: dict, groups: tuple[str, ...], columns: dict) -> str:
    """Tables of the smaller questions: one per group, columns from `info` with a format each."""
    parts = []
    for key, records in grouped(data["records"], *groups).items():
        rows = []
        for record in (r for r in records if "stats" in r):
            info = record["info"]
            rows.append([
                str(record["key"]["provider"]), milliseconds(record["stats"]["median"]),
                *(show(info[name]) if info.get(name) is not None else "" for name, show in columns.values()),
            ])  # fmt: skip
        title = ", ".join(f"{value}" if name == "shape" else f"{name} {value}" for name, value in zip(groups, key))
        lines = [f"#### {title}", "", table(["provider", "median ms", *columns], rows), *skipped_lines(records)]
        parts.append("\n".join(lines))
    return "\n\n".join(parts)


def _ratio(value: float) -> str:
    return f"{value:.3g}"


def _giga(value: float) -> str:
    return f"{value / 1e9:,.1f}"


def _thousands(value: int) -> str:
    return f"{value:,}"


def _tera(value: float) -> str:
    return f"{value / 1e12:.2f}"


def _millions(value: float) -> str:
    return f"{value / 1e6:.1f}"


def _whole(value: float) -> str:
    return f"{value:,.0f}"


def _gibi(value: int) -> str:
    return f"{value / 2**30:.2f}"


def _phases(value: dict) -> str:
    return ", ".join(f"{phase} {_gibi(size)}" for phase, size in value.items())


def _times3(value: float) -> str:
    return f"{value:.3f}"


def _times(value: float) -> str:
    return f"{value:.2f}x"


PLAIN = {
    "compaction": (
        ("shape", "masked"), {"rows in the head": ("rows_in_head", str), "peak MB": ("peak_bytes", megabytes)}
    ),
    "row_pass": (
        ("form",),
        {
            "state bytes per logit": ("bytes_per_logit", str), "GB/s": ("bandwidth", _giga),
            "of the copy": ("of_copy", _ratio), "asked bytes per logit": ("asked_bytes_per_logit", str),
            "asked GB/s": ("asked_bandwidth", _giga), "asked, of the copy": ("asked_of_copy", _ratio),
            "max abs logp error": ("logp_error", error), "peak MB": ("peak_bytes", megabytes),
        },
    ),
    "objective": (
        ("part",),
        {
            "sequences": ("sequences", str), "tokens": ("tokens", str), "error": ("relative_error", error),
            "peak MB": ("peak_bytes", megabytes),
        },
    ),
    "packing": (
        ("data",),
        {
            "tokens of the rows": ("tokens", _thousands), "rows through the head": ("head_rows", _thousands),
            "TFLOP": ("flops", _tera), "samples/s": ("samples_per_second", _ratio),
            "over none, by FLOPs": ("possible", _times), "over none, reached": ("reached", _times),
            "peak MB": ("peak_bytes", megabytes),
        },
    ),
    "layouts": (
        ("data", "prompts", "responses"),
        {
            "tokens": ("tokens", _thousands), "of none": ("of_none", _times),
            "rows through the head": ("head_rows", _thousands),
            "million input tokens/s": ("input_tokens_per_second", _millions),
        },
    ),
    "step": (
        ("shape", "samples"),
        {
            "tokens": ("tokens", _thousands), "samples/s": ("samples_per_second", _ratio),
            "trained": ("trained", str), "log-probs differ by": ("logp_difference", error),
            "peak MB": ("peak_bytes", megabytes),
        },
    ),
    "attention": (
        ("shape", "sharing"),
        {
            "kernel": ("kernel", str), "tokens": ("tokens", _thousands), "keys of all paths": ("keys", _thousands),
            "to ours": ("to_ours", _times), "of a layer": ("of_layer", _ratio), "peak MB": ("peak_bytes", megabytes),
        },
    ),
    "launches": (
        ("shape", "frozen"),
        {
            "launches": ("launches", str), "in the backward": ("backward_launches", str),
            "peak MB of the forward": ("peak_bytes", megabytes),
        },
    ),
    "memory_model": (
        ("shape", "budget"),
        {
            "tokens": ("tokens", _thousands), "tokens/s": ("tokens_per_second", _whole),
            "samples/s": ("samples_per_second", _ratio), "peak GiB": ("peak_bytes", _gibi),
            "planned GiB": ("planned_bytes", _gibi), "planned over measured": ("planned_over_measured", _times3),
            "GiB by phase": ("phases", _phases), "settings": ("settings", str),
        },
    ),
    "memory_largest": (
        ("shape",),
        {
            "samples that fit": ("largest_samples", _thousands), "tokens of the method": ("largest_tokens", _thousands),
            "as tokens of pair": ("pair_tokens", _thousands), "samples that did not": ("failed_samples", _thousands),
            "samples by the plan": ("planned_samples", _thousands), "settings": ("settings", str),
        },
    ),
    "memory": (
        ("shape", "frozen"),
        {
            "to the floor": ("of_floor", _ratio), "workspace_bytes MB": ("workspace_bytes", megabytes),
            "forward MB": ("forward_bytes", megabytes),
            "backward MB, less dW": ("backward_bytes", megabytes), "of workspace_bytes": ("of_workspace", _ratio),
            "RSS MB": ("resident_bytes", megabytes),
        },
    ),
}  # fmt: skip
TITLES = {
    "head_full": "Head, forward and backward, trained weight (three products)",
    "head_frozen": "Head, forward and backward, frozen weight (two products)",
    "packing": "A whole training step on real preference data: every shared token once",
    "layouts": "Tokens of whole data sets, padded and packed, and the speed of packing (one core)",
    "step": "Whole steps of models of known shapes: samples per second, and the largest batch",
    "attention": "Attention over a tree, alone",
    "compaction": "What it gains that only response rows enter the head",
    "row_pass": "Row pass against a copy of the same bytes",
    "objective": "Statistics of 64 sequences and the objective",
    "launches": "Kernels started between hidden states and loss",
    "memory_model": "Memory of whole training steps, measured and planned",
    "memory_largest": "The largest row of each method on one GPU",
    "memory": "Memory at a byte budget",
}


def runs_lines(data: dict) -> list[str]:
    """Machine, versions and command of each run that the records come from."""
    lines = []
    for run in data["runs"]:
        machine = run["machine"]
        where = f"{machine['device']}, {machine['processor']}, {machine['threads']} threads, {machine['system']}"
        versions = ", ".join(f"{name} {version}" for name, version in sorted(run["versions"].items()))
        lines += [f"- {run['date']}: {where}; {versions}", f"  `{run['command']}`"]
    return lines


def device_section(name: str, results: dict[str, dict]) -> str:
    parts = [f"## {name}"]
    for question, title in TITLES.items():
        if question not in results:
            parts.append(f"### {title}\n\npending: no result on this device yet.")
            continue
        data = results[question]
        body = head_section(data) if question.startswith("head") else plain_section(data, *PLAIN[question])
        parts.append("\n".join([f"### {title}", "", *runs_lines(data), "", body]))
    return "\n\n".join(parts)
