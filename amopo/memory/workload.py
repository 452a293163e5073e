"""From the lengths of a sample to the row that it becomes: tokens, rows of the head, keys, paths.

With p prompt, t template, w and l response tokens, K objectives, B samples (amopo.packing.pack):

| sharing | tokens T / B | keys S / B | paths / B |
|---|---|---|---|
| none | 2K (t + p) + K (w + l) | = T / B | 2K |
| pair | K (t + p) + K (w + l) | K (2 (t + p) + w + l) | 2K |
| tree | p + K t + K (w + l) | K (2 (t + p) + w + l) | 2K |

and K (w + l) rows of the head in all of them, where the responses begin with different tokens.
"""

from __future__ import annotations

import dataclasses

from amopo.memory.activations import Row
from amopo.memory.settings import SampleShape
from amopo.packing.sdpa import kept_mask


def row_of(sample: SampleShape) -> Row:
    """The packed row of `sample.samples` such samples."""
    k, b = sample.objectives, sample.samples
    prompts, responses = sample.template + sample.prompt, sample.chosen + sample.rejected
    written_out = k * (2 * prompts + responses)
    tokens = {
        "none": written_out,
        "pair": k * (prompts + responses),
        "tree": sample.prompt + k * (sample.template + responses),
    }[sample.sharing]
    # (queries, keys) of the paths; the first path of a tree is whole
    w, l, t = sample.chosen, sample.rejected, sample.template
    whole, rejected = (prompts + w, prompts + w), (l, prompts + l)
    lengths = {
        "none": [whole, (prompts + l, prompts + l)],
        "pair": [whole, rejected],
        "tree": [whole, *[(t + w, prompts + w)] * (k - 1), rejected],
    }[sample.sharing]
    return Row(
        tokens=b * tokens, rows=b * k * responses, keys=b * written_out, paths=2 * k * b, mask=kept_mask(lengths)
    )


def fill(sample: SampleShape, tokens: int) -> SampleShape:
    """As many whole samples as a budget of `tokens` holds.

    Raises:
        ValueError: it holds none, or is not positive.
    """
    if isinstance(tokens, bool) or not isinstance(tokens, int) or tokens < 1:
        raise ValueError(f"tokens must be a whole number of at least 1, got {tokens!r}")
    one = row_of(dataclasses.replace(sample, samples=1)).tokens
    if tokens < one:
        raise ValueError(
            f"a budget of {tokens} tokens does not hold one sample of {one} ({sample.objectives} objectives, prompt "
            f"{sample.prompt}, template {sample.template}, responses {sample.chosen} and {sample.rejected}, "
            f"sharing={sample.sharing}); give --tokens {one} or more, or shorter lengths"
        )
    return dataclasses.replace(sample, samples=tokens // one)


def padded(sample: SampleShape) -> tuple[int, int]:
    """(rows, length) of the same samples as the released code runs them: 2K rows each, padded to the longest."""
    longest = sample.template + sample.prompt + max(sample.chosen, sample.rejected)
    return 2 * sample.objectives * sample.samples, longest
