"""Where rows come from: a file in one of several formats, or a data set by its name.

    source = open_source("data.jsonl")
    for number, row in source.rows(): ...

| given | read as |
|---|---|
| `hf:owner/name[:config][:split]`, `hf:FOLDER` | a data set that the `datasets` library knows, streamed |
| a file that begins with "PAR1" | parquet, with pyarrow |
| a file whose text begins with "[" | one JSON array |
| any other file | JSON lines |

Text is UTF-8, with or without gzip; the content decides, not the name. Every source streams: it keeps one chunk of rows
and can be read again from its beginning. `number` counts from 1: lines of JSON lines (blank ones too), else rows.

`open_steady` (sources/steady.py) is for several passes: it sees to it that they give the same rows.
"""

from __future__ import annotations

import os
from pathlib import Path

from amopo.data.sources.hub import PREFIX, HubRows
from amopo.data.sources.json_array import JsonArray
from amopo.data.sources.json_lines import JsonLines
from amopo.data.sources.parquet import ParquetRows
from amopo.data.sources.source import Fail, Row, Source, open_bytes, stop

__all__ = ["Fail", "Row", "Source", "open_source", "stop"]

_SKIPPED = b" \t\r\n\xef\xbb\xbf"  # space and a byte-order mark


def open_source(name: str | os.PathLike[str] | Source) -> Source:
    """The source of that name. A file that is not there or cannot be read raises `DataError` here."""
    if isinstance(name, Source):
        return name
    if isinstance(name, str) and name.startswith(PREFIX):
        return HubRows(name)
    path = Path(name)
    with open_bytes(path) as file:
        if file.peek(4)[:4] == b"PAR1":
            return ParquetRows(path)
        while chunk := file.read(4096):
            if begin := chunk.lstrip(_SKIPPED):
                return JsonArray(path) if begin.startswith(b"[") else JsonLines(path)
    return JsonLines(path)
