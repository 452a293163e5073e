"""The answer of docs/memory.md in words and tables: `render(answer)` -> Markdown of what `make_answer` found."""

from __future__ import annotations

import shlex
import textwrap
from typing import Any

from amopo.memory.methods import METHODS
from amopo.memory.phases import PHASES
from bench.common.tables import table

GIB = 1 << 30


def _gib(size: int) -> str:
    return f"{size / GIB:.1f}"


def in_words(answer: dict[str, Any]) -> str:
    """The question answered in three sentences."""
    rows = {row["name"]: row for row in answer["rows"]}
    find = {row["name"]: row["gpus"] for row in answer["find"]}

    def verdict(name: str) -> str:
        row = rows[name]
        share = f"{_gib(row['peak'])} of {_gib(row['gpu_memory'])} GiB"
        return (
            f"it fits ({share}, up to {row['largest_tokens']} tokens)" if row["fits"] else f"it does not fit ({share})"
        )

    paper, methods = rows["paper"], rows["paper"]["methods"]
    kept = rows["paper-kept"]["peak"] - paper["peak"]
    once = paper["peak"] - rows["paper-once"]["peak"]
    most = {name: methods[name]["largest_samples"] for name in METHODS}
    numbers = [str(number) for number, name in enumerate(rows, start=1) if name in ("paper", "node", "one")]
    return (
        f"**Will it fit?** By the plan, with K = 4 objectives and rows of {paper['row']['tokens']} tokens: all weights "
        f"trained on the paper's 32 A100 80GB, with the paper's two micro-batches a step, {verdict('paper')}; on 8 "
        f"H100 80GB, with one micro-batch, {verdict('node')}; with LoRA of rank 16 on one H200 141GB, "
        f"{verdict('one')}. "
        "**With which settings?** `--engine fsdp2 --checkpointing`, and `--lora 16 --checkpointing` on one GPU (rows "
        f"{', '.join(numbers)} below); for all weights and one micro-batch the smallest clusters are "
        f"{find['find-80GB-fsdp2']} A100 80GB or {find['find-40GB-fsdp2']} A100 40GB. "
        f"**What does each choice cost?** On the 32 GPUs, `--checkpointing` saves {_gib(kept)} GiB for one more "
        f"forward of every layer; the second micro-batch takes {_gib(once)} GiB, since the gradients of the first "
        f"stand beside it; `--sharing tree` holds {most['amopo tree']} samples in a row where `pair` holds "
        f"{most['amopo pair']} and the released code {most['released']}, for templates that stand behind the prompt, "
        "which is another input."
    )


def render(answer: dict[str, Any]) -> str:
    """What stands between the markers."""
    rows = answer["rows"]
    example = rows[0]
    sample = example["sample"]
    parts = [_wrapped(in_words(answer))]
    parts.append(
        _wrapped(
            f"`--tokens 8192`, the default, is filled with whole samples (prompts of {sample['prompt']} + "
            f"{sample['template']} tokens, responses of {sample['chosen']}); each GPU has one such row. AdamW, mixed "
            "precision, 1 GiB of context. GiB on each GPU at the largest point of each phase; *budget*: the largest "
            "`--tokens` that fits. The plan has no margin: leave some for the allocator's fragmentation."
        )
    )
    lines = []
    for number, row in enumerate(rows, start=1):
        phases = [_gib(row["phases"][phase]) for phase in PHASES]
        lines.append([
            str(number), row["cluster"], f"`{short(row['command'])}`", str(row["sample"]["samples"]), *phases,
            _gib(row["peak"]), "yes" if row["fits"] else "**no**", str(row["largest_tokens"] or "-"),
            _gib(row["host"]) if row["host"] else "-",
            "pending" if row["measured"] is None else _gib(row["measured"]),
        ])  # fmt: skip
    header = [
        "", "cluster", "options", "samples", *PHASES, "peak", "fits", "budget", "host memory", "measured on a GPU",
    ]  # fmt: skip
    parts.append(table(header, lines))
    parts.append(_commands(rows, 1))
    parts.append("![planned memory of Qwen2.5-32B on 32 GPUs](images/memory-32b.png)")
    parts.append(f"```\n{example['command']} --picture plan.png\n```")

    parts.append("### Side by side")
    parts.append(
        _wrapped(
            "The same samples by other ways of computing their log-probs, under the same settings: peak in GiB, and in "
            "brackets the most samples in one row that fit the GPU (formulas: [the other "
            "methods](#the-other-methods)). Responses of one length need no padding; with real ones the first three "
            "take more."
        )
    )
    lines = [
        [
            str(number), row["cluster"], f"`{short(row['command'])}`",
            *(f"{_gib(row['methods'][name]['peak'])} ({row['methods'][name]['largest_samples']})" for name in METHODS),
        ]
        for number, row in enumerate(rows, start=1)
        if row["sample"]["sharing"] == "pair"
    ]  # fmt: skip
    parts.append(table(["", "cluster", "options", *METHODS], lines))
    parts.append("![peak against samples in a row, by method](images/memory-32b-methods.png)")

    parts.append("### examples/cluster/paper.yaml")
    parts.append(
        _wrapped(
            "Qwen2.5-7B, three objectives, rows of at most 8192 tokens, two micro-batches a step. It "
            + " and ".join(
                f"{'fits' if row['fits'] else 'does **not** fit'} under {row['name'].removeprefix('example-')} "
                f"({_gib(row['peak'])} of {_gib(row['gpu_memory'])} GiB)"
                for row in answer["example"]
            )
            + "."
        )
    )
    parts.append("\n".join(["```", *(row["command"] for row in answer["example"]), "```"]))

    parts.append("### The smallest cluster")
    lines = []
    for number, row in enumerate(answer["find"], start=len(rows) + 1):
        host = _gib(row["host"]) if row["host"] else "-"
        lines.append([str(number), row["cluster"], f"`{short(row['command'])}`", str(row["gpus"]), row["engine"],
                      _gib(row["peak"]), host])  # fmt: skip
    parts.append(table(["", "GPU", "options", "GPUs", "engine", "peak GiB", "host memory"], lines))
    parts.append(_commands(answer["find"], len(rows) + 1))
    return "\n\n".join(parts)


def _wrapped(text: str) -> str:
    return textwrap.fill(text, 120, break_long_words=False, break_on_hyphens=False)


def short(command: str) -> str:
    """The options that say what the cluster's column does not."""
    words = shlex.split(command)[5:]
    kept = [word for at, word in enumerate(words) if not {word, words[at - 1]} & {"--gpus", "--gpu-memory"}]
    return " ".join(kept)


def _commands(rows: list[dict[str, Any]], first: int) -> str:
    lines = [f"{row['command']}  # {number}" for number, row in enumerate(rows, start=first)]
    return "\n".join(["```", *lines, "```"])
