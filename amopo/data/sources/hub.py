"""Rows of a data set that the Hugging Face `datasets` library knows, streamed.

`HubRows("hf:owner/name[:config][:split]").rows()` yields (number, row), with nulls left out. `hf:FOLDER` is a local
folder of data files. With one part after the name, that is a configuration if the data set has one of that name, else a
split; `hf:owner/name::split` says split. Without a split: the only one, or "train". Nothing is stored on disk but what
the library caches. Needs `datasets` (`pip install 'amopo[data]'`).

This is the only module of amopo.data that imports a library of that kind, and only when it is asked for such a name.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from amopo.data.schema import DataError
from amopo.data.sources.source import Fail, Row, Source, stop, without_nulls

PREFIX = "hf:"
GRAMMAR = "write hf:owner/name, hf:owner/name:split or hf:owner/name:config:split"


class HubRows(Source):
    """Rows of one split."""

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self._path, *parts = name.removeprefix(PREFIX).split(":")
        if not self._path or len(parts) > 2:
            raise self.error(f"this is no name of a data set; {GRAMMAR}")
        self._parts = parts
        self._library = _import_datasets(name)
        self._split: Any = None

    def rows(self, fail: Fail = stop) -> Iterator[Row]:
        number = 0
        for row in self._stream():
            number += 1
            yield number, without_nulls(dict(row))
        if not number:
            raise self.error("the split is empty")

    def _stream(self) -> Iterator[Any]:
        if self._split is None:
            self._split = self._open()
        try:
            yield from self._split
        except DataError:
            raise
        except Exception as error:  # the network, the files' formats, a codec: anything
            raise self._refusal(error) from error

    def _open(self) -> Any:
        try:
            config, split = self._config_and_split()
            splits = self._library.load_dataset(self._path, name=config, streaming=True)
        except Exception as error:  # names that do not exist, the network, scripts that are not run
            raise self._refusal(error) from error
        names = list(splits)
        if split is None:
            split = names[0] if len(names) == 1 else "train"
        if split not in names:
            raise self.error(f"there is no split {split!r}; splits: {', '.join(map(str, names)) or 'none'}; {GRAMMAR}")
        return splits[split]

    def _config_and_split(self) -> tuple[str | None, str | None]:
        if len(self._parts) == 1:
            (part,) = self._parts
            is_config = part in self._library.get_dataset_config_names(self._path)
            return (part, None) if is_config else (None, part or None)
        config, split = self._parts or ("", "")
        return config or None, split or None

    def _refusal(self, error: Exception) -> DataError:
        reason = " ".join(str(error).split())
        return self.error(f"the data set cannot be read: {type(error).__name__}: {reason:.300}")


def _import_datasets(name: str) -> Any:
    try:
        import datasets
    except ImportError:
        raise DataError("this name needs the datasets library: pip install 'amopo[data]'", file=name) from None
    return datasets
