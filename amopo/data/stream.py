"""Records and pairs that are read anew each time they are gone through, for files that do not fit into memory.

    stream = RecordStream("data.jsonl", objectives=[...])            the records of a file; len() after a whole pass
    part = RecordPart(stream, length, keep=..., change=...)          those of one side of a split
    pairs = PairStream(part, length, make_maker=...)                 their pairs; each pass makes them again

Each is iterable as often as needed and knows its length. None is a list: there is no index, since a record can only be
reached by reading up to it. `each(on_progress)` iterates too, and tells `on_progress(done, total)` how many records of
the whole file are read; a part that holds few of them moves on all the same.

Every pass gives the same: see `amopo.data.sources.steady` for what happens to a file that changes meanwhile. In memory:
what `iter_records` holds.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from os import PathLike
from typing import Protocol, TypeVar

from amopo.data.content import PairContent
from amopo.data.pairs import PairMaker
from amopo.data.readers import ReadReport, iter_records
from amopo.data.readers.forms import OnRows
from amopo.data.scales import ScaleLike
from amopo.data.schema import Pair, PreferenceRecord
from amopo.data.sources.steady import open_steady

OnProgress = Callable[[int, int], None]
Item = TypeVar("Item")
Given = TypeVar("Given", covariant=True)


class Reiterable(Protocol[Given]):
    """What a list, a `RecordPart` and a `PairStream` have in common."""

    def __iter__(self) -> Iterator[Given]: ...

    def __len__(self) -> int: ...


class RecordStream:
    """All records of a source. Arguments, and that it can be read, are checked at once."""

    def __init__(
        self,
        path: str | PathLike[str],
        *,
        objectives: Sequence[str],
        scales: Mapping[str, ScaleLike] | None = None,
        format: str = "auto",
    ) -> None:
        self._source = open_steady(path)
        self._settings = {"objectives": objectives, "scales": scales, "format": format}
        self._length: int | None = None
        iter_records(self._source, **self._settings)

    def read(self, *, report: ReadReport | None = None, on_rows: OnRows | None = None) -> Iterator[PreferenceRecord]:
        """One pass; `report` and `on_rows` as for `iter_records`, but nothing is logged."""
        report, count = ReadReport() if report is None else report, 0
        for record in iter_records(self._source, **self._settings, report=report, on_rows=on_rows):
            count += 1
            yield record
        self._length = count

    def each(self, on_progress: OnProgress | None = None) -> Iterator[PreferenceRecord]:
        total = len(self)
        for done, record in enumerate(self.read(), start=1):
            yield record
            if on_progress is not None:
                on_progress(done, total)

    def __iter__(self) -> Iterator[PreferenceRecord]:
        return self.read()

    def __len__(self) -> int:
        if self._length is None:
            raise TypeError("the number of records is known after a whole pass over them")
        return self._length


class RecordPart:
    """Records of a stream that `keep` says yes to, after `change`; `length` says how many these are."""

    def __init__(
        self,
        stream: RecordStream,
        length: int,
        *,
        keep: Callable[[PreferenceRecord], bool] | None = None,
        change: Callable[[PreferenceRecord], PreferenceRecord] | None = None,
    ) -> None:
        self._stream, self._length, self._keep, self._change = stream, length, keep, change

    def each(self, on_progress: OnProgress | None = None) -> Iterator[PreferenceRecord]:
        for record in self._stream.each(on_progress):
            if self._keep is None or self._keep(record):
                yield record if self._change is None else self._change(record)

    def __iter__(self) -> Iterator[PreferenceRecord]:
        return self.each()

    def __len__(self) -> int:
        return self._length


class PairStream:
    """The pairs of these records, by a new `PairMaker` in each pass; `length` says how many these are.

    `content`: what decides their tokens, where an earlier pass has found it.
    """

    def __init__(
        self,
        records: RecordPart,
        length: int,
        *,
        make_maker: Callable[[], PairMaker],
        content: PairContent | None = None,
    ) -> None:
        self._records, self._length, self._make_maker, self.content = records, length, make_maker, content

    def each(self, on_progress: OnProgress | None = None) -> Iterator[Pair]:
        maker = self._make_maker()
        for record in self._records.each(on_progress):
            yield from maker.of(record)

    def __iter__(self) -> Iterator[Pair]:
        return self.each()

    def __len__(self) -> int:
        return self._length


def each(items: Reiterable[Item], on_progress: OnProgress) -> Iterator[Item]:
    """One pass over a stream or a list, with its progress."""
    if isinstance(items, RecordPart | PairStream):
        yield from items.each(on_progress)
        return
    for done, item in enumerate(items, start=1):
        yield item
        on_progress(done, len(items))


def sample_of(items: Reiterable[Item], limit: int, *, seed: int) -> list[Item]:
    """At most `limit` of the items in their order: all of them, or as many drawn at random, the same for a seed."""
    if len(items) <= limit:
        return list(items)
    rng = random.Random(seed)
    places = iter(sorted(rng.sample(range(len(items)), limit)))
    kept, place = [], next(places)
    for position, item in enumerate(items):
        if position == place:
            kept.append(item)
            place = next(places, None)
            if place is None:
                break
    return kept
