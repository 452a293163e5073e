"""Records divided into a training and an evaluation part.

`split_records(records, eval_fraction=0.1, seed=0) -> (train, eval)`. The unit is the prompt: records with the same
prompt stay together, so that no evaluation prompt was seen in training. Which prompts are held out depends on the
prompts and the seed alone, not on their order in the file. Both parts keep the order of the file.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from hashlib import blake2b

from amopo.data.schema import DataError, PreferenceRecord, is_finite_number


def split_records(
    records: Sequence[PreferenceRecord], *, eval_fraction: float, seed: int
) -> tuple[list[PreferenceRecord], list[PreferenceRecord]]:
    """`eval_fraction` of the distinct prompts goes to the second list: at least one if above 0, never all."""
    if not is_finite_number(eval_fraction) or not 0 <= eval_fraction < 1:
        raise ValueError(f"eval_fraction must be at least 0 and below 1, but is {eval_fraction!r}")
    keys = [json.dumps(record.prompt, sort_keys=True) for record in records]
    # Ranking by a seeded hash, and not by a shuffle of positions, keeps the choice independent of the file's order.
    ranked = sorted(set(keys), key=lambda key: blake2b(f"{seed}:{key}".encode(), digest_size=16).digest())
    if eval_fraction == 0:
        return list(records), []
    if len(ranked) < 2:
        raise DataError(
            f"cannot hold out prompts from {len(ranked)} distinct prompt(s); give more data or eval_fraction=0"
        )
    held_out = set(ranked[: min(max(1, round(eval_fraction * len(ranked))), len(ranked) - 1)])
    train = [record for record, key in zip(records, keys, strict=True) if key not in held_out]
    evaluation = [record for record, key in zip(records, keys, strict=True) if key in held_out]
    return train, evaluation
