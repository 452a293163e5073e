"""Records divided into a training and an evaluation part.

`split_records(records, eval_fraction=0.1, seed=0) -> (train, eval)`. The unit is the prompt: records with the same
prompt stay together, so that no evaluation prompt was seen in training. Which prompts are held out depends on the
prompts and the seed alone, not on their order in the file. Both parts keep the order of the file.

`HeldOut` is that choice where the records are not at hand: it needs their ranks (`prompt_rank`) alone, 8 bytes each,
and three times that while they are sorted.
"""

from __future__ import annotations

import json
from array import array
from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import blake2b

import torch

from amopo.data.schema import DataError, Message, PreferenceRecord, is_finite_number


def prompt_rank(prompt: Sequence[Message], *, seed: int) -> int:
    """Where a prompt stands in the order from which the first are held out: an integer below 2**63.

    Ranking by a seeded hash, and not by a shuffle of positions, keeps the choice independent of the file's order.
    """
    key = json.dumps(prompt, sort_keys=True)
    digest = blake2b(f"{seed}:{key}".encode(), digest_size=16).digest()
    return int.from_bytes(digest[:8], "big") >> 1


def check_eval_fraction(eval_fraction: float) -> None:
    """Raise for a share that is not in 0 <= share < 1."""
    if not is_finite_number(eval_fraction) or not 0 <= eval_fraction < 1:
        raise ValueError(f"eval_fraction must be at least 0 and below 1, but is {eval_fraction!r}")


def number_held_out(distinct_prompts: int, *, eval_fraction: float) -> int:
    """How many prompts are held out: at least one if the fraction is above 0, never all."""
    if distinct_prompts < 2:
        raise DataError(
            f"cannot hold out prompts from {distinct_prompts} distinct prompt(s); give more data, or train without "
            "held-out prompts (eval_fraction=0)"
        )
    return min(max(1, round(eval_fraction * distinct_prompts)), distinct_prompts - 1)


@dataclass(frozen=True)
class HeldOut:
    """Which prompts are held out: those whose rank is at most `last_rank`, `count` of all `prompts`."""

    seed: int
    last_rank: int
    count: int
    prompts: int

    @classmethod
    def choose(cls, ranks: array, *, eval_fraction: float, seed: int) -> HeldOut:
        """From the ranks ("q") of all records, in any order; see `number_held_out` for what raises."""
        distinct = torch.frombuffer(ranks, dtype=torch.int64).unique() if ranks else torch.empty(0)  # sorted
        count = number_held_out(len(distinct), eval_fraction=eval_fraction)
        return cls(seed, int(distinct[count - 1]), count, len(distinct))

    def holds(self, prompt: Sequence[Message]) -> bool:
        return prompt_rank(prompt, seed=self.seed) <= self.last_rank


def split_records(
    records: Sequence[PreferenceRecord], *, eval_fraction: float, seed: int
) -> tuple[list[PreferenceRecord], list[PreferenceRecord]]:
    """`eval_fraction` of the distinct prompts goes to the second list: at least one if above 0, never all."""
    check_eval_fraction(eval_fraction)
    if eval_fraction == 0:
        return list(records), []
    ranks = array("q", (prompt_rank(record.prompt, seed=seed) for record in records))
    held_out = HeldOut.choose(ranks, eval_fraction=eval_fraction, seed=seed)
    train = [record for record, rank in zip(records, ranks, strict=True) if rank > held_out.last_rank]
    evaluation = [record for record, rank in zip(records, ranks, strict=True) if rank <= held_out.last_rank]
    return train, evaluation
