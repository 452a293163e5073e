"""Preference samples of random tokens with the lengths of real ones, for machines without the data.

Lengths are drawn between the quantiles that helpsteer2_sample100 has with the `rubric` template: prompts of 79 to 512
tokens of which about 74 are the template, responses of 27 to 512. Only lengths matter for time and memory: K prompts
are a common head, a template each, and x.
"""

from __future__ import annotations

import random

from amopo.packing import TokenizedSample

AT = (0.0, 0.10, 0.25, 0.50, 0.75, 0.90, 1.0)
PROMPT = (79, 89, 96, 109, 205, 449, 512)
CHOSEN = (57, 117, 233, 316, 435, 512, 512)
REJECTED = (27, 100, 181, 252, 313, 420, 512)
HEAD, TEMPLATE = 4, 70


def length_between(quantiles: tuple[int, ...], draw: random.Random) -> int:
    """One length, linear between the quantiles."""
    at = draw.random()
    upper = next(i for i, share in enumerate(AT) if share >= at) or 1
    share = (at - AT[upper - 1]) / (AT[upper] - AT[upper - 1])
    return round(quantiles[upper - 1] + share * (quantiles[upper] - quantiles[upper - 1]))


def make_samples(
    count: int, *, vocab: int, objectives: int = 4, suffix: bool = False, shrink: int = 1, seed: int = 0
) -> list[TokenizedSample]:
    """`count` samples of `objectives` prompts; templates stand after x with `suffix`. `shrink` divides all lengths."""
    draw = random.Random(seed)

    def tokens(length: int) -> list[int]:
        return [draw.randrange(8, vocab) for _ in range(max(1, length // shrink))]

    samples = []
    for number in range(count):
        head, x = tokens(HEAD), tokens(length_between(PROMPT, draw) - HEAD - TEMPLATE)
        templates = [tokens(TEMPLATE) for _ in range(objectives)]
        prompts = tuple(head + x + t if suffix else head + t + x for t in templates)
        chosen, rejected = tokens(length_between(CHOSEN, draw)), tokens(length_between(REJECTED, draw))
        samples.append(TokenizedSample(prompts=prompts, chosen=chosen, rejected=rejected, id=number))
    return samples
