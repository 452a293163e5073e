"""The settings of `amopo data annotate`, checked before a file is read.

`options()` are its flags, `check(settings)` raises for what cannot work, `make_judge(settings)` gives the judge with
its rubric and scale, `api_key(variable)` the key: from the environment alone, so that it is in no shell history, no
process list and no message.
"""

from __future__ import annotations

import json
import math
import os
from pathlib import Path
from typing import Any

from amopo.cli.errors import UsageError
from amopo.cli.options import Option, Settings
from amopo.data.annotate import Judge, read_rubric, rubric_for
from amopo.data.annotate.prompt import DEFAULT_SAMPLING
from amopo.data.annotate.source import EXISTING
from amopo.data.readers import FORMATS
from amopo.data.scales import KNOWN_SCALES, as_scale, check_objectives, parse_scales
from amopo.data.schema import DataError, Scale

# What the annotator writes into a request itself.
RESERVED = ("messages", "model", "stream", "n", "tools", "functions")


def options() -> list[Option]:
    return [
        Option("file", str, "the preference file; the first argument", required=True, metavar="FILE"),
        Option("out", str, "the file to write; the second argument", required=True, metavar="OUT"),
        Option("objective", str, "what to judge, such as instruction_following", required=True),
        Option("scale", Any, "lowest and highest score; known for HelpSteer2's objectives", None, "LOW:HIGH"),
        Option("endpoint", str, "base URL, such as http://localhost:8000/v1", required=True, metavar="URL"),
        Option("model", str, "the judge's name at the endpoint", required=True),
        Option(
            "api_key_env", str | None, "environment variable that holds the API key; none is sent without", None, "VAR"
        ),
        Option("rubric", str | None, "your own rubric instead of the shipped one, a text file", None, "FILE"),
        Option("fractions", bool, "scores between whole numbers are allowed", default=False),
        Option("existing", str, f"responses that have a score already: {', '.join(EXISTING)}", default="refuse"),
        Option("concurrency", int, "requests at a time", default=4),
        Option("max_retries", int, "retries of a request after 429, 5xx, time-outs, broken connections", default=6),
        Option("max_asks", int, "replies without a usable score before a question counts as failed", default=3),
        Option("timeout", float, "seconds to wait for an answer", default=120.0),
        Option("temperature", float, "of the judge", default=float(DEFAULT_SAMPLING["temperature"])),
        Option("max_tokens", int, "longest reply of the judge", default=DEFAULT_SAMPLING["max_tokens"]),
        Option("request", Any, "more fields of the request, as JSON; null removes one", None, "{...}"),
        Option("cache", str | None, "folder of the journal (default: OUT.journal)", None, "DIR"),
        Option("limit", int | None, "only the first N records, to try it out", None),
        Option("dry_run", bool, "show counts and the first request, send and write nothing", default=False),
        Option("retry_failed", bool, "ask again what failed in earlier runs", default=False),
        Option("allow_missing", bool, "write OUT though scores are missing in it", default=False),
        Option("drop_missing", bool, "write OUT without the records that lack a score", default=False),
        Option("force", bool, "replace OUT if it exists", default=False),
        Option("format", str, f"format of FILE: {', '.join(FORMATS)}", default="auto", important=False),
    ]


def make_judge(settings: Settings) -> Judge:
    (objective,) = check_objectives([settings.objective])
    scale = _read_scale(objective, settings.scale)
    if settings.rubric is None:
        rubric = rubric_for(objective, scale)
    else:
        rubric = read_rubric(settings.rubric, objective=objective, scale=scale)
    sampling = {**DEFAULT_SAMPLING, "temperature": settings.temperature, "max_tokens": settings.max_tokens}
    sampling |= _read_request(settings.request)
    sampling = {name: value for name, value in sampling.items() if value is not None}
    return Judge(settings.model, objective, scale, rubric, sampling, settings.fractions)


def _read_scale(objective: str, value: Any) -> Scale:
    if value is None and objective in KNOWN_SCALES:
        return KNOWN_SCALES[objective]
    if value is None:
        raise UsageError(f"--scale: write low:high, the lowest and the highest score of {objective!r}, e.g. 0:4")
    if isinstance(value, str):
        try:
            return parse_scales(f"x={value}")["x"]
        except (DataError, KeyError):
            raise UsageError(f"--scale: write low:high with low below high, e.g. 0:4, not {value!r}") from None
    if isinstance(value, list):
        return as_scale(objective, value)
    # YAML 1.1 reads 0:4 as the number 4, in base 60
    raise UsageError(f"--scale: write [low, high] in a file, not {value!r}")


def _read_request(value: Any) -> dict[str, Any]:
    if value is None:
        return {}
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except ValueError as error:
            raise UsageError(f"--request: not JSON ({error})") from None
    if not isinstance(value, dict) or not all(isinstance(name, str) for name in value):
        raise UsageError('--request: a JSON object such as {"top_p": 0.9} is needed')
    for name in RESERVED:
        if name in value:
            raise UsageError(f"--request: {name!r} is not yours to set here")
    try:
        json.dumps(value, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise UsageError(f"--request: {error}") from None
    return value


def check(settings: Settings) -> None:
    """What cannot work, before the file is read."""
    for name, least in (("concurrency", 1), ("max_retries", 0), ("max_asks", 1), ("max_tokens", 1), ("limit", 1)):
        value = settings.values.get(name)
        if value is not None and value < least:
            raise UsageError(f"--{name.replace('_', '-')}: at least {least} is needed, not {value}")
    if not 0 < settings.timeout < math.inf:
        raise UsageError(f"--timeout: a number of seconds above 0 is needed, not {settings.timeout:g}")
    if not 0 <= settings.temperature < math.inf:
        raise UsageError(f"--temperature: 0 or more is needed, not {settings.temperature:g}")
    for name, known in (("existing", EXISTING), ("format", FORMATS)):
        if getattr(settings, name) not in known:
            raise UsageError(f"--{name}: {getattr(settings, name)!r} is not one of {', '.join(known)}")
    if settings.existing == "keep" and settings.scale is None:
        raise UsageError("--existing keep: say with --scale low:high which scale the scores that are kept are on")
    if not settings.model.strip():
        raise UsageError("--model: the judge's name is empty")
    out, file = Path(settings.out), Path(settings.file)
    if out.exists() and file.exists() and out.samefile(file):
        raise UsageError(f"OUT is FILE ({file}); name another file to write")
    if out.is_dir():
        raise UsageError(f"OUT: {out} is a folder")
    if out.exists() and not settings.force and not settings.dry_run:
        raise UsageError(f"OUT: {out} exists; --force replaces it (what is in the journal is not asked again)")
    if not out.absolute().parent.is_dir() or not os.access(out.absolute().parent, os.W_OK):
        raise UsageError(f"OUT: the folder of {out} does not exist or is not writable")


def api_key(variable: str | None) -> str | None:
    if variable is None:
        return None
    if variable not in os.environ:
        # The value may have been given by mistake: it is not repeated.
        raise UsageError(
            "--api-key-env: there is no environment variable of that name; give a name, never the key itself"
        )
    return os.environ[variable]
