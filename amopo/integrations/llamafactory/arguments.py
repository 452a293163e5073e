"""LLaMA-Factory's finetuning arguments with AMoPO among them.

`stage: amopo` (or `stage: dpo` with `pref_loss: amopo`) selects AMoPO. It reads LLaMA-Factory's `pref_beta` (default
there 0.8) and `simpo_gamma` (default there 0), and the fields below. Other losses keep their own defaults. An option
that AMoPO has no use for is refused by name, and so is an `amopo_` option beside another loss.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from llamafactory.hparams.finetuning_args import FinetuningArguments

from amopo.data.scales import as_scales, check_objectives, parse_scales, resolve_scales
from amopo.data.schema import Scale
from amopo.data.templates import get_template
from amopo.preference_loss import LossSettings

AMOPO = "amopo"
FIXED = "fixed"
# Defaults of pref_beta and simpo_gamma: LLaMA-Factory's, and AMoPO's.
_BETA, _GAMMA = (0.1, 0.8), (0.5, 0.0)
# Options of LLaMA-Factory's preference losses that AMoPO has no use for, with the values that ask for nothing.
_UNUSED = {
    "pref_ftx": 0.0,
    "pref_bco_weight": 0.0,
    "dpo_label_smoothing": 0.0,
    "ld_alpha": None,
    "ref_model": None,
    "ref_model_adapters": None,
}


@dataclass(frozen=True)
class AMoPOSettings:
    """What AMoPO's data, collator and trainer need to know, checked."""

    objectives: tuple[str, ...]
    scales: dict[str, Scale]
    template: str
    beta: float
    gamma: float
    weights: str | tuple[float, ...]
    pooled: str
    preset: str | None

    @property
    def num_objectives(self) -> int:
        """K."""
        return len(self.objectives)

    def loss(self, *, seed: int, step: int, device: torch.device) -> LossSettings:
        """The settings of one call of the loss."""
        weights = self.weights if isinstance(self.weights, str) else torch.tensor(self.weights, device=device)
        return LossSettings(self.beta, self.gamma, AMOPO, weights, self.pooled, self.preset, None, seed, step)


@dataclass
class AMoPOFinetuningArguments(FinetuningArguments):
    """`FinetuningArguments` that know AMoPO."""

    stage: Literal["pt", "sft", "rm", "ppo", "dpo", "kto", "amopo"] = field(
        default="sft", metadata={"help": "Which stage will be performed in training."}
    )
    pref_loss: Literal["sigmoid", "hinge", "ipo", "kto_pair", "orpo", "simpo", "amopo"] = field(
        default="sigmoid", metadata={"help": "The preference loss of the DPO stage."}
    )
    pref_beta: float | None = field(
        default=None, metadata={"help": f"The beta of the preference loss; {_BETA[0]}, or {_BETA[1]} for AMoPO."}
    )
    simpo_gamma: float | None = field(
        default=None, metadata={"help": f"The margin of SimPO ({_GAMMA[0]}) and AMoPO ({_GAMMA[1]:g})."}
    )
    amopo_objectives: str | None = field(
        default=None, metadata={"help": "Names of AMoPO's objectives, separated by commas; in YAML also a list."}
    )
    amopo_scales: str | None = field(
        default=None, metadata={"help": 'Scales that are not known, such as "quality=1:6"; in YAML also a mapping.'}
    )
    amopo_template: str | None = field(
        default=None, metadata={"help": "How an objective is written into the prompt (rubric), see amopo.templates."}
    )
    amopo_weights: str | None = field(
        default=None,
        metadata={"help": "Where AMoPO's weights come from (gaussian), see amopo.weights; or numbers, one each."},
    )
    amopo_pooled: Literal["union", "sum"] | None = field(
        default=None, metadata={"help": "Statistics over both responses together (union), or each alone, added."}
    )
    amopo_preset: Literal["official"] | None = field(
        default=None, metadata={"help": '"official": the arithmetic of the released AMoPO trainer.'}
    )

    def __post_init__(self) -> None:
        if self.stage == AMOPO:
            self.stage, self.pref_loss = "dpo", AMOPO
        is_amopo = self.pref_loss == AMOPO
        if is_amopo and self.stage != "dpo":
            raise ValueError(f"pref_loss: amopo belongs to stage: amopo (or dpo), not to stage: {self.stage}")
        self.pref_beta = _BETA[is_amopo] if self.pref_beta is None else self.pref_beta
        self.simpo_gamma = _GAMMA[is_amopo] if self.simpo_gamma is None else self.simpo_gamma
        # LLaMA-Factory knows SimPO as the loss without a reference model.
        self.pref_loss = "simpo" if is_amopo else self.pref_loss
        super().__post_init__()
        if is_amopo:
            self.pref_loss = AMOPO
            amopo_settings(self)
        elif given := [name for name in vars(self) if name.startswith("amopo_") and getattr(self, name) is not None]:
            raise ValueError(f"{given[0]} has no effect with pref_loss: {self.pref_loss}; set stage: amopo or leave it")


def amopo_settings(arguments: AMoPOFinetuningArguments) -> AMoPOSettings:
    """AMoPO's settings, checked.

    Raises:
        ValueError, TypeError: naming the option that cannot be right.
    """
    for name, nothing in _UNUSED.items():
        value = getattr(arguments, name)
        if value != nothing:
            raise ValueError(f"{name}={value!r} has no effect in AMoPO, which has no such term; leave it out")
    given = arguments.amopo_objectives
    if given is None:
        raise ValueError("AMoPO needs amopo_objectives, e.g. amopo_objectives: helpfulness,correctness")
    objectives = check_objectives([n.strip() for n in given.split(",")] if isinstance(given, str) else given)
    scales = arguments.amopo_scales
    scales = parse_scales(scales) if isinstance(scales, str) else as_scales(scales)
    try:
        scales = resolve_scales(objectives, given=scales)
    except ValueError as error:
        raise ValueError(f"{error}; in LLaMA-Factory's YAML: amopo_scales: {{name: [low, high]}}") from None
    template = get_template(arguments.amopo_template or "rubric").name
    settings = AMoPOSettings(
        objectives=objectives,
        scales=scales,
        template=template,
        beta=arguments.pref_beta,
        gamma=arguments.simpo_gamma,
        weights=_weights(arguments.amopo_weights, len(objectives)),
        pooled=arguments.amopo_pooled or "union",
        preset=arguments.amopo_preset,
    )
    settings.loss(seed=0, step=0, device=torch.device("cpu")).check()
    return settings


def _weights(given: Any, count: int) -> str | tuple[float, ...]:
    from amopo import weights

    if given is None:
        return "gaussian"
    if isinstance(given, str) and given in weights.list():
        return given
    parts = given.split(",") if isinstance(given, str) else given
    try:
        numbers = tuple(float(part) for part in parts)
    except (TypeError, ValueError):
        raise ValueError(
            f"amopo_weights must be one of {', '.join(weights.list())}, or {count} numbers, got {given!r}"
        ) from None
    if len(numbers) != count or not all(0 <= number < float("inf") for number in numbers) or not sum(numbers) > 0:
        raise ValueError(f"amopo_weights must be {count} numbers that are not negative nor all zero, got {given!r}")
    return numbers
