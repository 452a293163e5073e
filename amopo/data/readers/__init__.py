"""Preference records from files and data sets, in the forms that people have.

    read_records(path, objectives=[...])    a list
    iter_records(path, objectives=[...])    one at a time, in bounded memory
    scan_scores(path)                       which objectives are scored, and from where to where

| form | a row is | read by |
|---|---|---|
| `grouped` | a prompt with all its responses | `readers/grouped.py` |
| `trl` | a pair, with `chosen_scores` and `rejected_scores` | `readers/trl.py` |
| `amopo` | a pair, as the authors of AMoPO released it | `readers/released.py` |
| `helpsteer2` | a response, next to the others of its prompt | `readers/helpsteer2.py` |
| `ultrafeedback` | an instruction with rated completions | `readers/ultrafeedback.py` |

The form is told by the first row, or named (`format=`). Where rows come from is `amopo.data.sources`.
"""

from amopo.data.readers.forms import FORMATS, FORMS, detect, read_raw
from amopo.data.readers.raw import UNRATED, RawRecord, RawResponse
from amopo.data.readers.records import iter_records, read_records
from amopo.data.readers.report import ReadReport
from amopo.data.readers.scan import ScoreScan, all_objectives, scan_scores

__all__ = [
    "FORMATS",
    "FORMS",
    "UNRATED",
    "RawRecord",
    "RawResponse",
    "ReadReport",
    "ScoreScan",
    "all_objectives",
    "detect",
    "iter_records",
    "read_raw",
    "read_records",
    "scan_scores",
]
