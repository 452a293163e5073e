"""Pairs to tokens, with progress where it takes long: from the cache, or anew."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator, Sequence
from typing import Any

from amopo.cli.console import Console
from amopo.data import Pair, PairTokenizer, TokenizationReport, cached_samples
from amopo.data.stream import PairStream, Reiterable, each
from amopo.packing import TokenizedSample

SILENT_SECONDS = 2.0  # what is done sooner needs no progress bar


def tokenize(
    pairs: Reiterable[Pair], tokenizer: Any, console: Console, *, cache: bool, **settings: Any
) -> tuple[Sequence[TokenizedSample], TokenizationReport]:
    """Samples in mapped files where they are cached, else as a list; `settings` as for `tokenize_pairs`."""
    with console.stage("tokenise"):
        if cache:
            content = pairs.content if isinstance(pairs, PairStream) else None
            # without the content a pass finds it; where the tokens are kept already, there is no other
            titles = ("tokenise",) if content is not None else ("looking for kept tokens", "tokenise")
            return cached_samples(_Shown(pairs, console, *titles), tokenizer, content=content, **settings)
        run = PairTokenizer(tokenizer, **settings)
        return list(run.samples(_Shown(pairs, console, "tokenise"))), run.report()


class _Shown:
    """Pairs whose passes show how far they are, under these titles, if they take long."""

    def __init__(self, pairs: Reiterable[Pair], console: Console, *titles: str) -> None:
        self._pairs, self._console, self._titles = pairs, console, list(titles)

    def __iter__(self) -> Iterator[Pair]:
        title = self._titles.pop(0) if len(self._titles) > 1 else self._titles[0]
        started, bars = time.monotonic(), []
        with contextlib.ExitStack() as stack:

            def show(done: int, total: int) -> None:
                if not bars and time.monotonic() - started > SILENT_SECONDS:
                    bars.append(stack.enter_context(self._console.bar(title)))
                if bars and (done % 100 == 0 or done == total):
                    bars[0].update(done, total)

            yield from each(self._pairs, show)
