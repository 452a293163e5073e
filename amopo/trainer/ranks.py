"""A run that goes on with another number of ranks.

Contract
--------
An optimizer step of R ranks with A micro-batches each consists of R * A micro-batches. A run planned so can
go on with r ranks and a micro-batches if r divides R and r * a = R * A: the micro-batches, and the samples of every
step, stay what they were, and so does the result, but for the order of additions. A run's record holds R and A as
`planned_ranks` and `planned_accumulation`, which must not change, beside `world_size` and
`gradient_accumulation_steps`, which may.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def ranks_of(args: Any, planned_ranks: int | None = None) -> dict[str, int]:
    """The four numbers of a run with these arguments, planned for `planned_ranks` (default: its own)."""
    ranks, accumulation = args.world_size, args.gradient_accumulation_steps
    planned = ranks if planned_ranks is None else planned_ranks
    return {
        "world_size": ranks,
        "gradient_accumulation_steps": accumulation,
        "planned_ranks": planned,
        "planned_accumulation": ranks * accumulation // planned,
    }


def with_plan(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Recorded settings with all four numbers: records of older versions lack the planned ones."""
    ranks, accumulation = settings.get("world_size") or 1, settings.get("gradient_accumulation_steps") or 1
    plan = {"planned_ranks": ranks, "planned_accumulation": accumulation}
    return plan | {"world_size": ranks, "gradient_accumulation_steps": accumulation} | dict(settings)


def comparable(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Settings in which ranks and accumulation are the planned ones, under the names that users know."""
    compared = with_plan(settings)
    compared["world_size"] = compared.pop("planned_ranks")
    compared["gradient_accumulation_steps"] = compared.pop("planned_accumulation")
    return compared


def ranks_to_plan_for(settings: Mapping[str, Any] | None, args: Any) -> int:
    """How many ranks the batches are planned for when a run of `settings` goes on with `args`.

    Raises:
        ValueError: the micro-batches of a step cannot be dealt out to these ranks; with what to set.
    """
    ranks, accumulation = args.world_size, args.gradient_accumulation_steps
    if settings is None:  # what is wrong with the record is said elsewhere
        return ranks
    old = with_plan(settings)
    planned, per_step = old["planned_ranks"], old["planned_ranks"] * old["planned_accumulation"]
    if ranks == old["world_size"] and accumulation == old["gradient_accumulation_steps"]:
        return planned
    if planned % ranks:
        raise ValueError(
            f"cannot resume on {ranks} ranks a run that was planned for {planned}: the number of ranks must divide "
            f"{planned}; start as many, or start a new run from its weights"
        )
    if ranks != old["world_size"] and ranks * accumulation != per_step:
        raise ValueError(
            f"cannot resume on {ranks} ranks with gradient_accumulation_steps={accumulation}: a step of this run has "
            f"{per_step} micro-batches ({planned} ranks with {old['planned_accumulation']}); set "
            f"gradient_accumulation_steps={per_step // ranks}"
        )
    return planned
