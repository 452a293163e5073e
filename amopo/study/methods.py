"""What a study compares.

Every method begins at the same imitating model of a seed and makes the same number of optimizer steps over the same
number of pairs, with the same learning rate, beta and gamma. They differ in what is written here.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace

from amopo.packing.sample import TokenizedSample

START = "start"
"""The imitating model, before any preference training."""


@dataclass(frozen=True)
class Method:
    name: str
    title: str
    objective: str = "amopo"
    weights: str = "gaussian"
    plain: bool = False
    """One term under the plain prompt, in place of one under each objective's template."""
    swapped: bool = False
    """Chosen and rejected are exchanged for a random half of the pairs."""

    @property
    def is_amopo(self) -> bool:
        return self.objective == "amopo" and not self.swapped


METHODS = (
    Method("gaussian", "AMoPO, gaussian weights"),
    Method("mean", "AMoPO, mean weights", weights="mean"),
    Method("uniform", "AMoPO, uniform weights", weights="uniform"),
    Method("simpo", "SimPO, overall pair", objective="simpo", weights="uniform", plain=True),
    Method("placebo", "placebo, swapped at random", swapped=True),
)
TITLES = {START: "imitation start", **{method.name: method.title for method in METHODS}}


def swap_at_random(samples: Sequence[TokenizedSample], *, seed: int) -> list[TokenizedSample]:
    """Each sample with chosen and rejected exchanged or not, by a fair coin keyed by (seed, sample id).

    The prompts stay as they were, so they show the score of the response that was really better, whichever side it is
    on now. Swapped pairs that showed the new winner's score would still teach which response fits a shown score.
    """
    return [
        replace(sample, chosen=sample.rejected, rejected=sample.chosen) if _coin(seed, sample.id) else sample
        for sample in samples
    ]


def _coin(seed: int, sample_id: int | str) -> bool:
    return bool(hashlib.blake2b(f"{seed}:{sample_id!r}".encode(), digest_size=1).digest()[0] & 1)
