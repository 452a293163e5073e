"""Tokenised samples in files that are mapped into memory, for data that does not fit it.

Contract
--------
`SampleWriter(folder, num_objectives=K)` appends samples one by one and keeps none; `close()` finishes the folder.
`TokenDataset(folder)` is a sequence of `TokenizedSample` over it: opening keeps no tokens in memory, an item reads its
own. It knows without reading tokens: `sizes(sharing)` (packed tokens and rows of the head of each sample),
`longest_sequences`, `largest_tokens`, `fingerprint` (the same as for a list of the same samples), `has_signs`.

Files, little-endian, n samples of K objectives, K + 2 token lists each (K prompts, chosen, rejected):

    tokens.i32    all token lists, one after the other
    offsets.i64   n * (K + 2) + 1: where they begin
    summary.i32   n x 8: tokens and rows for each sharing in the order of `SHARING`, longest sequence, largest token
    signs.i8      n x K
    keys.i64      n: the ids as the loss's noise knows them
    ids.json      the ids, one JSON value per line; id_offsets.i64 n + 1: where the lines begin
    meta.json     format, K, n, fingerprint, bytes and CRC-32 of every file, what the writer was told to keep

Raises: `StoredSamplesError` (a ValueError) for a folder that is not whole: missing files, other sizes, other contents
(`verify=True` reads everything once, in blocks). Two samples of one id raise when the writer is closed.
Needs numpy, which transformers brings along; the machine must be little-endian.
"""

from __future__ import annotations

import array
import hashlib
import json
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from amopo.packing.pack import packed_size
from amopo.packing.sample import TokenizedSample, add_to_fingerprint, sample_id_to_int64
from amopo.packing.trie import SHARING, check_sharing

if TYPE_CHECKING:
    import numpy

FORMAT = 1
META = "meta.json"
FILES = ("tokens.i32", "offsets.i64", "summary.i32", "signs.i8", "keys.i64", "ids.json", "id_offsets.i64")
_COLUMNS = 2 * len(SHARING) + 2
_LONGEST, _LARGEST = _COLUMNS - 2, _COLUMNS - 1
_BLOCK = 1 << 16


class StoredSamplesError(ValueError):
    """A folder of samples that is not whole."""


class Sizes(NamedTuple):
    """Per sample: tokens of a packed row, rows of the head; int32 `[n]` each."""

    tokens: numpy.ndarray
    rows: numpy.ndarray


class _File:
    """Bytes appended to a file, counted and summed up."""

    def __init__(self, path: Path) -> None:
        self._file = open(path, "wb")  # noqa: SIM115 - closed by the writer
        self.bytes = self.crc = 0

    def write(self, data: bytes) -> None:
        self._file.write(data)
        self.bytes += len(data)
        self.crc = zlib.crc32(data, self.crc)

    def close(self) -> None:
        self._file.close()


class SampleWriter:
    """Appends samples to a folder. As a context manager it closes the files; `close` makes the folder whole."""

    def __init__(self, folder: str | Path, *, num_objectives: int) -> None:
        self.folder = Path(folder)
        self.folder.mkdir(parents=True, exist_ok=True)
        self.num_objectives = num_objectives
        self.num_samples = 0
        self._has_signs = False
        self._tokens = self._id_bytes = 0
        self._digest = hashlib.blake2b(digest_size=16)
        self._files = {name: _File(self.folder / name) for name in FILES}
        for name in ("offsets.i64", "id_offsets.i64"):
            self._put(name, "q", [0])

    def add(self, sample: TokenizedSample) -> None:
        """Append one sample."""
        if sample.num_objectives != self.num_objectives:
            raise ValueError(
                f"sample {sample.id!r} has {sample.num_objectives} prompts, but the folder holds samples of "
                f"{self.num_objectives} objectives"
            )
        lists = (*sample.prompts, sample.chosen, sample.rejected)
        ends = []
        for tokens in lists:
            self._put("tokens.i32", "i", tokens)
            self._tokens += len(tokens)
            ends.append(self._tokens)
        self._put("offsets.i64", "q", ends)
        sizes = [packed_size(sample, sharing=sharing) for sharing in SHARING]
        longest = max(map(len, sample.prompts)) + max(len(sample.chosen), len(sample.rejected))
        columns = [number for size in sizes for number in (size.tokens, size.rows)]
        self._put("summary.i32", "i", [*columns, longest, max(map(max, lists))])
        self._put("signs.i8", "b", sample.signs or (1,) * self.num_objectives)
        self._put("keys.i64", "q", [sample_id_to_int64(sample.id)])
        line = json.dumps(sample.id).encode() + b"\n"
        self._files["ids.json"].write(line)
        self._id_bytes += len(line)
        self._put("id_offsets.i64", "q", [self._id_bytes])
        add_to_fingerprint(self._digest, sample)
        self._has_signs |= sample.signs is not None
        self.num_samples += 1

    def close(self, notes: Mapping[str, Any] | None = None) -> None:
        """Finish the folder; `notes` are plain values that `TokenDataset.notes` gives back."""
        self._close_files()
        if not self.num_samples:
            raise ValueError("no sample was written; there is nothing to train on")
        self._check_keys()
        meta = {
            "format": FORMAT,
            "num_objectives": self.num_objectives,
            "num_samples": self.num_samples,
            "fingerprint": self._digest.hexdigest(),
            "has_signs": self._has_signs,
            "files": {name: [file.bytes, file.crc] for name, file in self._files.items()},
            "notes": dict(notes or {}),
        }
        (self.folder / META).write_text(json.dumps(meta, indent=1), encoding="utf-8")

    def _put(self, name: str, kind: str, numbers: Sequence[int]) -> None:
        self._files[name].write(array.array(kind, numbers).tobytes())

    def _check_keys(self) -> None:
        import numpy

        keys = numpy.fromfile(self.folder / "keys.i64", dtype="<i8")
        order = keys.argsort(kind="stable")
        repeated = numpy.flatnonzero(keys[order[1:]] == keys[order[:-1]])
        if len(repeated):
            index = int(order[1:][repeated[0]])
            with open(self.folder / "ids.json", encoding="utf-8") as file:
                name = next(line for number, line in enumerate(file) if number == index)
            raise ValueError(
                f"sample id {json.loads(name)!r} occurs twice; the weights' noise is keyed by it, so give every sample "
                "an id of its own"
            )

    def _close_files(self) -> None:
        for file in self._files.values():
            file.close()

    def __enter__(self) -> SampleWriter:
        return self

    def __exit__(self, *exception: object) -> None:
        self._close_files()


class TokenDataset(Sequence):
    """Samples of a folder that `SampleWriter` made, mapped into memory."""

    def __init__(self, folder: str | Path, *, verify: bool = True) -> None:
        self.folder = Path(folder)
        self._meta = _read_meta(self.folder)
        self.num_objectives: int = self._meta["num_objectives"]
        self.fingerprint: str = self._meta["fingerprint"]
        self.has_signs: bool = self._meta["has_signs"]
        self.notes: dict[str, Any] = self._meta["notes"]
        self._length: int = self._meta["num_samples"]
        for name, (size, crc) in self._meta["files"].items():
            _check_file(self.folder / name, size, crc if verify else None)
        self._tokens = self._map("tokens.i32", "<i4")
        self._offsets = self._map("offsets.i64", "<i8")
        self._summary = self._map("summary.i32", "<i4").reshape(self._length, _COLUMNS)
        self._signs = self._map("signs.i8", "i1").reshape(self._length, self.num_objectives)
        self._ids = self._map("ids.json", "u1")
        self._id_offsets = self._map("id_offsets.i64", "<i8")

    def _map(self, name: str, kind: str) -> numpy.ndarray:
        import numpy

        # The plain array over the mapping: slices of numpy.memmap itself are slow to make.
        return numpy.asarray(numpy.memmap(self.folder / name, dtype=kind, mode="r"))

    def __len__(self) -> int:
        return self._length

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(self._length))]
        position = index + self._length if index < 0 else index
        if not 0 <= position < self._length:
            raise IndexError(f"sample {index} of {self._length}")
        width = self.num_objectives + 2
        edges = self._offsets[position * width : (position + 1) * width + 1].tolist()
        lists = [self._tokens[a:b].tolist() for a, b in zip(edges[:-1], edges[1:], strict=True)]
        signs = self._signs[position].tolist() if self.has_signs else None
        return TokenizedSample(tuple(lists[:-2]), lists[-2], lists[-1], self.id_of(position), signs)

    def id_of(self, index: int) -> int | str:
        """The id of a sample, without its tokens."""
        if not 0 <= index < self._length:
            raise IndexError(f"sample {index} of {self._length}")
        start, stop = self._id_offsets[index : index + 2].tolist()
        return json.loads(self._ids[start:stop].tobytes())

    def sizes(self, sharing: str) -> Sizes:
        """Packed tokens and rows of the head of every sample."""
        check_sharing(sharing)
        column = 2 * SHARING.index(sharing)
        return Sizes(self._summary[:, column], self._summary[:, column + 1])

    def first_with_signs(self) -> int:
        """Index of the first sample with a sign other than +1; the dataset must have one (`has_signs`)."""
        return int((self._signs != 1).any(axis=1).argmax())

    @property
    def longest_sequences(self) -> numpy.ndarray:
        """int32 [n]: tokens of each sample's longest sequence, prompt and response."""
        return self._summary[:, _LONGEST]

    @property
    def largest_tokens(self) -> numpy.ndarray:
        """int32 [n]: the largest token id in each sample."""
        return self._summary[:, _LARGEST]

    def __reduce__(self) -> tuple[Any, ...]:
        # Other processes (a DataLoader's workers) map the files themselves.
        return _open_again, (self.folder,)

    def __repr__(self) -> str:
        return f"TokenDataset({str(self.folder)!r}): {self._length} samples of {self.num_objectives} objectives"


def _open_again(folder: Path) -> TokenDataset:
    return TokenDataset(folder, verify=False)


def _read_meta(folder: Path) -> dict[str, Any]:
    path = folder / META
    try:
        meta = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise StoredSamplesError(f"{path} is missing; the folder holds no samples, or not all of them") from None
    except (OSError, ValueError) as error:
        raise StoredSamplesError(f"{path} cannot be read ({error})") from None
    if not isinstance(meta, dict) or meta.get("format") != FORMAT or set(meta.get("files", ())) != set(FILES):
        raise StoredSamplesError(f"{path} is not of format {FORMAT}; write the samples again")
    return meta


def _check_file(path: Path, size: int, crc: int | None) -> None:
    try:
        found = path.stat().st_size
        if found != size:
            raise StoredSamplesError(f"{path} has {found} bytes instead of {size}")
        if crc is None:
            return
        total = 0
        with open(path, "rb") as file:
            while block := file.read(_BLOCK):
                total = zlib.crc32(block, total)
    except OSError as error:
        raise StoredSamplesError(f"{path} cannot be read ({error})") from None
    if total != crc:
        raise StoredSamplesError(f"{path} does not hold what was written (its checksum differs)")
