"""The preference file of `amopo train` and `amopo eval`: the options that both have, and what they ask for.

`data_options()` -> those options. `check_choices(settings)` raises `UsageError` for a name that is none of its choices,
before any file is read. `objectives_of(settings)`, `strategy_of(settings)` -> what is trained or measured, and which
responses are compared. `read(settings, ...)` -> the `Inputs` of these settings (`amopo.cli.inputs`).
"""

from __future__ import annotations

from typing import Any

from amopo.cli.errors import UsageError
from amopo.cli.inputs import Inputs, read_inputs, read_scales, read_score_weights
from amopo.cli.models import DTYPES
from amopo.cli.options import Option, Settings
from amopo.data import get_template, with_overall
from amopo.data.pairs import ORIENTATIONS, STRATEGIES, check_pairs_per_prompt
from amopo.data.readers import FORMATS
from amopo.data.scales import check_objectives


def data_options() -> list[Option]:
    """What `amopo train` and `amopo eval` share."""
    return [
        Option("model", str, "folder, Hub name, or scratch:tiny for a new small model", metavar="M", required=True),
        Option("data", str, "prompts with scored responses: a file, or hf:owner/name", metavar="FILE", required=True),
        Option("objectives", list[str], "names of the objectives: a,b,c", metavar="A,B,C", required=True),
        Option("scales", dict | str | None, "scale of each objective", default=None, metavar="A=1:6,B=0:4"),
        Option("format", str, f"of the file: {', '.join(FORMATS)}", default="auto", important=False),
        Option(
            "template",
            str,
            "how an objective is written into a prompt: a name, or a .txt or .yaml file",
            default="rubric",
            metavar="NAME|FILE",
        ),
        Option("pairs", str, f"which responses are compared: {', '.join(STRATEGIES)}", default="best_worst"),
        Option(
            "pairs_per_prompt", int | None, "with --pairs all: only the N that differ most", default=None, metavar="N"
        ),
        Option(
            "orientation",
            str,
            "overall: one winner for all objectives; per_objective: each has its own, ties are left out",
            default="overall",
        ),
        Option(
            "overall", bool, "add a leading objective: overall quality, the weighted mean of the others", default=False
        ),
        Option(
            "score_weights",
            Any,
            "weights of the scores, which decide who is chosen",
            default=None,
            metavar="A=2,B=1",
        ),
        Option("max_prompt_length", int, "longest prompt in tokens", default=512),
        Option("max_response_length", int, "longest response in tokens", default=512),
        Option("no_cache", bool, "tokenise anew, and keep nothing", default=False, important=False),
        Option("dtype", str, f"of the loaded weights: {', '.join(DTYPES)}", default="float32", important=False),
    ]


def check_choices(settings: Settings) -> None:
    """Names among which there is a choice, before any file is read."""
    objectives_of(settings)
    get_template(settings.template)
    choices = (("format", FORMATS), ("pairs", STRATEGIES), ("orientation", ORIENTATIONS), ("dtype", DTYPES))
    for name, known in choices:
        if getattr(settings, name) not in known and (name, getattr(settings, name)) != ("dtype", None):
            raise UsageError(f"--{name}: {getattr(settings, name)!r} is not one of {', '.join(known)}")
    try:
        check_pairs_per_prompt(settings.pairs_per_prompt, strategy_of(settings))
    except ValueError as error:
        raise UsageError(f"--pairs-per-prompt: {error}") from None


def objectives_of(settings: Settings) -> list[str]:
    """The objectives that are trained: those of the file, with "overall" before them if asked for."""
    named = list(check_objectives(settings.objectives))
    return with_overall(named) if settings.overall else named


def strategy_of(settings: Settings) -> str:
    """Which responses are compared; a number of pairs per prompt alone chooses among all."""
    asked = settings.pairs_per_prompt is not None and "pairs" not in settings.given
    return "all" if asked else settings.pairs


def read(settings: Settings, **options: Any) -> Inputs:
    return read_inputs(
        settings.data,
        objectives=settings.objectives,
        scales=read_scales(settings.scales),
        format=settings.format,
        strategy=strategy_of(settings),
        pairs_per_prompt=settings.pairs_per_prompt,
        orientation=settings.orientation,
        overall=settings.overall,
        score_weights=read_score_weights(settings.score_weights),
        **options,
    )
