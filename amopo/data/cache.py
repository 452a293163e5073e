"""Tokenised pairs, kept in files by what they are made of.

    samples, report = cached_samples(pairs, tokenizer, objectives=[...], scales={...}, template="rubric")

Gives what `tokenize_pairs` gives, as a `TokenDataset` over files in `cache_folder()`: `$AMOPO_CACHE`, or
`~/.cache/amopo`. Memory holds one sample at a time. `pairs` is gone through twice, once for the key and once for the
tokens, so it must be a list, or something that can be iterated again. Where their `content` (`PairContent`) is known
already, they are gone through only to make the tokens.

The key is a hash of everything that decides the tokens: ids, prompts, responses, shown scores and signs of the pairs,
the template's text for each of them and its position, both lengths, the tokenizer (vocabulary, merges, special tokens,
chat template and what it writes today), and `CACHE_VERSION`. So the same pairs under another file name are found, and a
changed word is not.

Several processes may ask for the same entry at once: each writes to a folder of its own, the first to finish names it,
the others take that one. An entry that is not whole (a full disk, a cut-off copy) is said, removed and made again.
Entries are never removed otherwise; deleting the folder is always safe.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import logging
import os
import shutil
import tempfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from amopo.data.content import PairContent
from amopo.data.schema import DataError, Pair, Scale
from amopo.data.templates import Template
from amopo.data.tokenize import PairTokenizer, TokenizationReport
from amopo.packing.stored import SampleWriter, StoredSamplesError, TokenDataset

# Raise it with every change of what samples are made of the same input.
CACHE_VERSION = 2
ENVIRONMENT = "AMOPO_CACHE"
_PROBE = [{"role": "system", "content": "One."}, {"role": "user", "content": "Two?"}]
_REPORT = "report"
logger = logging.getLogger(__name__)


def cache_folder() -> Path:
    """Where entries are kept; nothing is made."""
    given = os.environ.get(ENVIRONMENT)
    return Path(given).expanduser() if given else Path.home() / ".cache" / "amopo"


def cached_samples(
    pairs: Iterable[Pair],
    tokenizer: Any,
    *,
    objectives: Sequence[str],
    scales: Mapping[str, Scale],
    template: str | Template = "rubric",
    max_prompt_length: int = 512,
    max_response_length: int = 512,
    folder: str | Path | None = None,
    content: PairContent | None = None,
    on_sample: Callable[[int], None] | None = None,
) -> tuple[TokenDataset, TokenizationReport]:
    """Samples of these pairs, from the cache or made and kept there.

    Args:
        folder: instead of `cache_folder()`. content: of these pairs, for the same objectives. on_sample: called with
            the number of samples made so far.
        The others: see `tokenize_pairs`.
    Raises:
        what `tokenize_pairs` raises; TypeError for pairs that can be iterated once only; DataError for a folder that
        cannot be written to.
    """
    if iter(pairs) is pairs:
        raise TypeError("pairs can be gone through once only; pass a list, or an object that starts anew each time")
    run = PairTokenizer(
        tokenizer,
        objectives=objectives,
        scales=scales,
        template=template,
        max_prompt_length=max_prompt_length,
        max_response_length=max_response_length,
    )
    root = Path(folder) if folder is not None else cache_folder()
    if content is not None and content.objectives != run.objectives:
        raise ValueError(
            f"content is of the objectives {', '.join(content.objectives)}, but the pairs are tokenised for "
            f"{', '.join(run.objectives)}; make it with the same"
        )
    entry = root / "tokens" / cache_key(PairContent.of(pairs, run.objectives) if content is None else content, run)
    found = _open(entry)
    if found is not None:
        return found, TokenizationReport(**found.notes[_REPORT])
    try:
        return _make(pairs, run, entry, on_sample)
    except OSError as error:
        raise DataError(
            f"tokenised data cannot be kept in {root} ({error}); set {ENVIRONMENT} to a folder with room for it, or do "
            "without the cache (--no-cache)"
        ) from error


def cache_key(content: PairContent, run: PairTokenizer) -> str:
    """The name of the entry for pairs of this content."""
    digest = hashlib.blake2b(digest_size=20)

    def add(*values: Any) -> None:
        digest.update(json.dumps(values, sort_keys=True).encode() + b"\n")

    add(CACHE_VERSION, run.objectives, run.max_prompt_length, run.max_response_length, run.template.position)
    add(tokenizer_identity(run.chat.tokenizer), _writes(run))
    add(content.hexdigest())
    for (objective, score), first in content.shown.items():
        add(objective, score, _text(run, first, objective, score))
    return digest.hexdigest()


def tokenizer_identity(tokenizer: Any) -> str:
    """A digest of what decides a tokenizer's ids: vocabulary, merges, rules, special tokens, chat template."""
    parts = [type(tokenizer).__name__, tokenizer.chat_template, sorted(tokenizer.get_vocab().items())]
    added = getattr(tokenizer, "added_tokens_decoder", {})
    parts.append(sorted((token_id, repr(token)) for token_id, token in added.items()))
    parts.append({name: str(value) for name, value in getattr(tokenizer, "special_tokens_map", {}).items()})
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is not None:
        rules = json.loads(backend.to_str())
        # set by whoever used it last, and set anew at every call
        rules = {name: value for name, value in rules.items() if name not in ("truncation", "padding")}
        parts.append(rules)
    else:  # tokenizers in Python keep their merges under these names
        parts.append([repr(getattr(tokenizer, name, None)) for name in ("bpe_ranks", "merges", "init_kwargs")])
    return hashlib.blake2b(json.dumps(parts, sort_keys=True, default=repr).encode(), digest_size=16).hexdigest()


def _writes(run: PairTokenizer) -> str | None:
    """What the chat template writes now: some write today's date."""
    for messages in (_PROBE, _PROBE[1:]):
        with contextlib.suppress(ValueError):  # a template without a system turn
            return run.chat.prompt_text(messages)
    return None


def _text(run: PairTokenizer, sample: int | str, objective: str, score: float) -> str:
    try:
        return run.template.text(objective=objective, score=score, scale=run.scales[objective])
    except ValueError as error:
        raise DataError(f"sample {sample!r}: {error}") from error


def _open(entry: Path) -> TokenDataset | None:
    """The entry if it is there and whole; one that is not is removed."""
    if not entry.exists():
        return None
    try:
        dataset = TokenDataset(entry)
        TokenizationReport(**dataset.notes[_REPORT])
    except (StoredSamplesError, KeyError, TypeError) as error:
        logger.warning("the tokenised data in %s is not whole (%s); it is made again", entry, error)
        _remove(entry)
        return None
    return dataset


def _make(
    pairs: Iterable[Pair], run: PairTokenizer, entry: Path, on_sample: Callable[[int], None] | None
) -> tuple[TokenDataset, TokenizationReport]:
    entry.parent.mkdir(parents=True, exist_ok=True)
    unfinished = Path(tempfile.mkdtemp(prefix=f".{entry.name[:8]}-", dir=entry.parent))
    try:
        with SampleWriter(unfinished, num_objectives=len(run.objectives)) as writer:
            for sample in run.samples(pairs):
                writer.add(sample)
                if on_sample is not None:
                    on_sample(writer.num_samples)
            report = run.report()
            writer.close({_REPORT: dataclasses.asdict(report)})
        os.chmod(unfinished, 0o755)  # mkdtemp's are for one user only
        for _ in range(2):
            with contextlib.suppress(OSError):  # another process was first
                os.rename(unfinished, entry)
            dataset = _open(entry)
            if dataset is not None:
                return dataset, report
        raise OSError(f"{entry} was written, but cannot be read")
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)


def _remove(entry: Path) -> None:
    """Out of the way first: whoever looks meanwhile sees a whole entry or none."""
    aside = Path(tempfile.mkdtemp(prefix=".broken-", dir=entry.parent))
    with contextlib.suppress(OSError):
        os.rename(entry, aside / entry.name)
    shutil.rmtree(aside, ignore_errors=True)
