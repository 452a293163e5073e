"""The model that a command was asked for.

`load(name, dtype=...)` -> model and tokenizer of a local folder or a Hub name; one clear `UsageError` if that fails.
`fresh(size, records, ...)` -> a small untrained model, with a tokenizer trained on the records' texts.
`add_lora(model, rank, alpha)` -> the model with LoRA adapters on its linear layers (not on the head), adapters of a
bfloat16 or float16 base in float32.
`training_dtype(asked, lora_r=, bf16=)` -> the dtype that training loads weights in: float32 for what an optimizer
updates, since steps of 1e-6 vanish in bfloat16; bfloat16 for a frozen base under LoRA in bf16 training, whose products
are bfloat16 anyway.
`weights_line(model)` says how many weights there are of each dtype.
`need(package, extra)` raises a `UsageError` that names the extra to install.
"""

from __future__ import annotations

import importlib.util
import os
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from amopo.cli.errors import UsageError
from amopo.data import PreferenceRecord, Scale, Template, get_template
from amopo.trainer.scratch import SIZES, build_model, train_tokenizer

DTYPES = ("float32", "bfloat16", "float16", "auto")


def need(package: str, extra: str) -> None:
    if importlib.util.find_spec(package) is None:
        raise UsageError(f"this command needs {package}: pip install 'amopo[{extra}]'")


def source_of(name: str) -> tuple[str, Path | None]:
    """Where transformers is to load from, and the folder, if it is one."""
    looks_local = name.startswith((".", "~")) or os.path.isabs(name) or name.count("/") > 1
    folder = Path(name).expanduser()
    if looks_local and not folder.is_dir():
        raise UsageError(f"--model: the folder {name} does not exist")
    return (str(folder), folder) if folder.is_dir() else (name, None)


@contextmanager
def loading(name: str) -> Iterator[None]:
    """One clear `UsageError` for whatever is wrong with a model's files."""
    try:
        yield
    except (OSError, ValueError, KeyError) as error:
        reason = " ".join(str(error).split())
        raise UsageError(
            f"--model: cannot load {name}: {reason[:200]}{'...' if len(reason) > 200 else ''} "
            f"Give a folder with a saved model, a Hub name, or scratch:{'|'.join(SIZES)}"
        ) from error


def load_tokenizer(source: str) -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(source)


def training_dtype(asked: str | None, *, lora_r: int | None, bf16: bool) -> str:
    """The dtype to load a model in that is then trained; `asked` wins."""
    if asked is not None:
        return asked
    return "bfloat16" if lora_r is not None and bf16 else "float32"


def weights_line(model: Any) -> str:
    """Frozen and trained weights, by dtype."""
    from amopo.trainer.identity import numel

    counts: Counter[tuple[bool, str]] = Counter()
    for parameter in model.parameters():
        name = str(parameter.dtype).removeprefix("torch.")
        counts[parameter.requires_grad, name] += numel(parameter)
    parts = [
        f"{count / 1e6:.2f}M {'trained' if trained else 'frozen'} in {dtype}"
        for (trained, dtype), count in sorted(counts.items())
    ]
    return f"weights: {', '.join(parts)}"


def load(name: str, *, dtype: str = "float32") -> tuple[Any, Any]:
    from transformers import AutoModelForCausalLM

    source, _ = source_of(name)
    with loading(name):
        return AutoModelForCausalLM.from_pretrained(source, dtype=dtype), load_tokenizer(source)


def fresh(
    size: str,
    records: Sequence[PreferenceRecord],
    *,
    objectives: Sequence[str],
    scales: dict[str, Scale],
    template: str | Template,
    seed: int,
    max_length: int,
) -> tuple[Any, Any]:
    texts = [message["content"] for record in records for message in record.prompt]
    texts += [response.text for record in records for response in record.responses]
    # The template's words come up at every prompt, so they should be whole tokens.
    words = [
        get_template(template).text(objective=name, score=score, scale=scales[name])
        for name in objectives
        for score in (scales[name].low, scales[name].high)
    ]
    texts += words * (1 + len(records) // len(words))
    tokenizer = train_tokenizer(texts, vocab_size=SIZES[size].vocab)
    return build_model(size, tokenizer, seed=seed, max_length=max_length), tokenizer


def add_lora(model: Any, *, rank: int, alpha: float | None) -> Any:
    need("peft", "peft")
    from peft import LoraConfig, get_peft_model

    if rank < 1:
        raise UsageError(f"--lora-r: a rank of at least 1 is needed, not {rank}")
    config = LoraConfig(
        r=rank, lora_alpha=2 * rank if alpha is None else alpha, target_modules="all-linear", task_type="CAUSAL_LM"
    )
    return get_peft_model(model, config)
