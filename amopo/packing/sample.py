"""One tokenised preference sample of K objectives.

Contract
--------
`TokenizedSample(prompts, chosen, rejected, id, signs)` holds plain Python integers, no tensors:

- `prompts`: K token lists, the k-th is the prompt written for objective k, `f(x, d_k)`, assistant header included;
- `chosen`, `rejected`: the two responses' token lists, the same for every objective, end-of-turn token included;
- `id`: a non-negative integer or any string. The loss's noise is keyed by it, so it must name the sample for good;
- `signs`: K numbers, or None where every objective prefers the chosen response. +1: objective k prefers the chosen
  response; -1: the rejected one; 0: neither, and objective k is absent from this sample's loss. Signs that are all +1
  are stored as None.

The 2K sequences of a sample are `prompts[k] + chosen` and `prompts[k] + rejected`.

Raises: K = 0, an empty prompt, a response without a token, identical responses, negative or non-integer token ids,
signs that are not K numbers of +1, -1 and 0, or all 0.
Whether ids fit a model's vocabulary is not known here; the trainer checks that.
"""

from __future__ import annotations

import array
import hashlib
import operator
from collections.abc import Iterable
from dataclasses import dataclass

_INT64_MAX = 2**63 - 1


def sample_id_to_int64(id: int | str) -> int:
    """The non-negative int64 that stands for a sample id in the noise counter.

    Integers stand for themselves. Strings hash by 64-bit blake2b, with the sign bit cleared, so that the same name
    gives the same number in every process and on every machine.
    """
    if isinstance(id, bool) or not isinstance(id, int | str):
        raise TypeError(f"a sample id must be an integer or a string, got {id!r} of type {type(id).__name__}")
    if isinstance(id, str):
        digest = hashlib.blake2b(id.encode("utf-8", errors="surrogatepass"), digest_size=8).digest()
        return int.from_bytes(digest, "little") & _INT64_MAX
    if not 0 <= id <= _INT64_MAX:
        raise ValueError(f"sample id {id} does not fit a non-negative int64; give a smaller number, or a string")
    return id


def _token_list(ids: Iterable[int], what: str) -> list[int]:
    try:
        tokens = list(map(operator.index, ids))
    except TypeError as error:
        raise TypeError(f"{what} must be a list of integer token ids: {error}") from None
    if tokens and min(tokens) < 0:
        position = next(i for i, token in enumerate(tokens) if token < 0)
        raise ValueError(
            f"{what} has the negative token id {tokens[position]} at position {position}; "
            "masked labels such as -100 do not belong into a sample, leave those tokens out"
        )
    return tokens


def _checked_signs(signs: Iterable[int] | None, num_objectives: int, name: str) -> tuple[int, ...] | None:
    if signs is None:
        return None
    try:
        given = tuple(map(operator.index, signs))
    except TypeError as error:
        raise TypeError(f"{name}: signs must be a list of +1, -1 and 0, one per objective: {error}") from None
    if len(given) != num_objectives or not set(given) <= {1, -1, 0}:
        raise ValueError(
            f"{name}: signs must be {num_objectives} numbers of +1 (prefers chosen), -1 (prefers rejected) and 0 "
            f"(a tie), one per objective, got {given}"
        )
    if not any(given):
        raise ValueError(f"{name}: all signs are 0, so no objective has a preference; drop the sample")
    return None if all(sign == 1 for sign in given) else given


@dataclass(frozen=True, slots=True)
class TokenizedSample:
    """K tokenised prompts and the two tokenised responses that they share."""

    prompts: tuple[list[int], ...]
    chosen: list[int]
    rejected: list[int]
    id: int | str = 0
    signs: tuple[int, ...] | None = None

    def __post_init__(self) -> None:
        sample_id_to_int64(self.id)
        name = f"sample {self.id!r}"
        if len(self.prompts) == 0:
            raise ValueError(f"{name} has no prompts (K = 0 objectives); give one prompt per objective")
        prompts = tuple(_token_list(p, f"{name}: prompts[{k}]") for k, p in enumerate(self.prompts))
        for k, prompt in enumerate(prompts):
            if not prompt:
                raise ValueError(f"{name}: prompts[{k}] is empty; the first response token needs a token before it")
        responses = {}
        for side in ("chosen", "rejected"):
            responses[side] = _token_list(getattr(self, side), f"{name}: {side}")
            if not responses[side]:
                raise ValueError(
                    f"{name}: {side} is a sequence with no response token; drop the sample or cut its prompt, "
                    "not its response"
                )
        if responses["chosen"] == responses["rejected"]:
            raise ValueError(f"{name}: chosen and rejected are identical; such a pair carries no preference, drop it")
        object.__setattr__(self, "signs", _checked_signs(self.signs, len(prompts), name))
        object.__setattr__(self, "prompts", prompts)
        object.__setattr__(self, "chosen", responses["chosen"])
        object.__setattr__(self, "rejected", responses["rejected"])

    @property
    def num_objectives(self) -> int:
        """K, the number of prompts."""
        return len(self.prompts)


def add_to_fingerprint(digest: hashlib.blake2b, sample: TokenizedSample) -> None:
    """Add what a sample holds to a digest of samples in their order: id, tokens, signs."""
    digest.update(repr(sample.id).encode())
    for sequence in (*sample.prompts, sample.chosen, sample.rejected):
        digest.update(array.array("q", [len(sequence), *sequence]).tobytes())
    if sample.signs is not None:
        digest.update(repr(sample.signs).encode())
