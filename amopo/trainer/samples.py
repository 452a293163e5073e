"""A dataset of samples, checked once before training.

Contract
--------
`read_samples(dataset, ...)` checks a sequence of `TokenizedSample` and returns a `SampleTable` with the packed length
of each and a fingerprint of all. A list is read through once; a `TokenDataset` knows these numbers, and its tokens are
not read. It raises, naming the sample, for: no samples, another K than the objectives, a sample larger than the token
budget, token ids beyond the vocabulary, ids that occur twice (the weights' noise is keyed by them), samples with signs
where `orientation` is "overall", fewer samples than ranks, a sequence with more tokens than the model has positions.
Rotary positions have no end: sequences beyond the length that the model was made for are a warning.
"""

from __future__ import annotations

import array
import hashlib
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from amopo.data.pairs import PER_OBJECTIVE
from amopo.packing.pack import packed_size
from amopo.packing.sample import TokenizedSample, add_to_fingerprint, sample_id_to_int64
from amopo.packing.stored import TokenDataset

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Positions:
    """How many positions a model was made for, and whether there are no others (a table that is looked up)."""

    count: int | None = None
    is_table: bool = False


@dataclass(frozen=True)
class SampleTable:
    """Checked samples, their packed lengths and rows of the head, a fingerprint of what they hold, in their order."""

    samples: Sequence[TokenizedSample]
    lengths: Sequence[int]
    fingerprint: str
    rows: Sequence[int] = field(default_factory=list)

    def names(self) -> Sequence[int | str]:
        """The samples' ids; those of a `TokenDataset` are read when they are looked at."""
        if isinstance(self.samples, TokenDataset):
            return _Ids(self.samples)
        return [self.samples[i].id for i in range(len(self.lengths))]


class _Ids(Sequence):
    def __init__(self, dataset: TokenDataset) -> None:
        self._dataset = dataset

    def __len__(self) -> int:
        return len(self._dataset)

    def __getitem__(self, index: int) -> int | str:
        return self._dataset.id_of(index)


@dataclass(frozen=True)
class _Limits:
    """What a sample must keep to; each check raises under the dataset's and the sample's name."""

    name: str
    num_objectives: int
    tokens_per_batch: int
    vocab_size: int | None
    positions: Positions
    orientation: str

    def objectives(self, sample: int | str, count: int) -> None:
        if count != self.num_objectives:
            raise ValueError(
                f"{self.name}: sample {sample!r} has {count} prompts, but there are {self.num_objectives} "
                "objectives; write one prompt per objective"
            )

    def signs(self, sample: int | str, has_signs: bool) -> None:
        if has_signs and self.orientation != PER_OBJECTIVE:
            raise ValueError(
                f"{self.name}: sample {sample!r} has signs, so its objectives prefer different responses, but "
                "orientation='overall' trains one winner for all; set orientation='per_objective', or make the samples "
                "without signs"
            )

    def length(self, sample: int | str, length: int) -> None:
        if length > self.tokens_per_batch:
            raise ValueError(
                f"{self.name}: sample {sample!r} takes {length} tokens packed (all {2 * self.num_objectives} "
                f"sequences), more than tokens_per_batch={self.tokens_per_batch}; set tokens_per_batch to at least "
                f"{length} or shorten it"
            )

    def token(self, sample: int | str, largest: int) -> None:
        if self.vocab_size is not None and largest >= self.vocab_size:
            raise ValueError(
                f"{self.name}: sample {sample!r} has token id {largest}, but the model's vocabulary has "
                f"{self.vocab_size} entries; was another tokenizer used?"
            )

    def sequence(self, sample: int | str, tokens: int) -> None:
        count = self.positions.count
        if self.positions.is_table and count is not None and tokens > count:
            raise ValueError(
                f"{self.name}: the longest sequence of sample {sample!r} has {tokens} tokens, but the model has "
                f"{count} positions; shorten the sample (max_prompt_length, max_response_length)"
            )

    def warn(self, longest: int, sample: int | str | None, any_signs: bool) -> None:
        """What is allowed, and worth a warning."""
        if self.orientation == PER_OBJECTIVE and not any_signs:
            logger.warning(
                "%s: orientation='per_objective', but no sample has a sign other than +1: every objective prefers the "
                "chosen response, or the samples were made without signs",
                self.name,
            )
        if self.positions.count is not None and longest > self.positions.count:
            logger.warning(
                "%s: the longest sequence (sample %r) has %d tokens, more than the %d positions that the model was "
                "made for (max_position_embeddings); its log-probs may be poor there",
                self.name,
                sample,
                longest,
                self.positions.count,
            )


def read_samples(
    dataset: Sequence[TokenizedSample],
    *,
    name: str,
    num_objectives: int,
    tokens_per_batch: int,
    vocab_size: int | None = None,
    world_size: int = 1,
    sharing: str = "pair",
    positions: Positions = Positions(),
    orientation: str = "overall",
) -> SampleTable:
    """Check all samples of a dataset (called `name` in messages)."""
    if isinstance(dataset, Mapping):
        raise TypeError(
            f"{name} must be a list of TokenizedSample, got a {type(dataset).__name__} with the keys "
            f"{', '.join(map(repr, list(dataset)[:5])) or '(none)'}; pass one of its entries"
        )
    if not hasattr(dataset, "__len__") or not hasattr(dataset, "__getitem__"):
        raise TypeError(f"{name} must be a list of TokenizedSample, got {type(dataset).__name__}")
    if len(dataset) == 0:
        raise ValueError(f"{name} is empty; give at least one sample")
    if len(dataset) < world_size:
        raise ValueError(
            f"{name} has {len(dataset)} samples for {world_size} ranks, and every rank needs one; start fewer "
            "processes or give more samples"
        )
    limits = _Limits(name, num_objectives, tokens_per_batch, vocab_size, positions, orientation)
    if isinstance(dataset, TokenDataset):
        return _table_of_stored(dataset, limits, sharing)
    return _table_of_list(dataset, limits, sharing)


def _table_of_stored(dataset: TokenDataset, limits: _Limits, sharing: str) -> SampleTable:
    """From what the dataset knows of its samples; only the worst of each kind is looked at."""
    limits.objectives(dataset.id_of(0), dataset.num_objectives)
    if dataset.has_signs:
        limits.signs(dataset.id_of(dataset.first_with_signs()), True)
    sizes = dataset.sizes(sharing)
    worst = {}
    checks = (
        ("length", sizes.tokens, limits.length),
        ("token", dataset.largest_tokens, limits.token),
        ("sequence", dataset.longest_sequences, limits.sequence),
    )
    for kind, column, check in checks:
        index = int(column.argmax())
        worst[kind] = int(column[index]), dataset.id_of(index)
        check(worst[kind][1], worst[kind][0])
    limits.warn(*worst["sequence"], dataset.has_signs)
    lengths, rows = (array.array("q", column.astype("<i8").tobytes()) for column in sizes)
    return SampleTable(dataset, lengths, dataset.fingerprint, rows)


def _table_of_list(dataset: Sequence[TokenizedSample], limits: _Limits, sharing: str) -> SampleTable:
    """One pass through all samples."""
    lengths: list[int] = []
    rows: list[int] = []
    seen: dict[int, int | str] = {}
    longest, longest_id = 0, None
    any_signs = False
    digest = hashlib.blake2b(digest_size=16)
    for index in range(len(dataset)):
        sample = dataset[index]
        if not isinstance(sample, TokenizedSample):
            raise TypeError(f"{limits.name}[{index}] must be a TokenizedSample, got {type(sample).__name__}")
        limits.objectives(sample.id, sample.num_objectives)
        limits.signs(sample.id, sample.signs is not None)
        size = packed_size(sample, sharing=sharing)
        limits.length(sample.id, size.tokens)
        limits.token(sample.id, max(map(max, (*sample.prompts, sample.chosen, sample.rejected))))
        tokens = max(map(len, sample.prompts)) + max(len(sample.chosen), len(sample.rejected))
        limits.sequence(sample.id, tokens)
        if tokens > longest:
            longest, longest_id = tokens, sample.id
        key = sample_id_to_int64(sample.id)
        if key in seen:
            raise ValueError(
                f"{limits.name}: sample id {sample.id!r} occurs twice; the weights' noise is keyed by it, so give "
                "every sample an id of its own"
            )
        seen[key] = sample.id
        any_signs |= sample.signs is not None
        lengths.append(size.tokens)
        rows.append(size.rows)
        add_to_fingerprint(digest, sample)
    limits.warn(longest, longest_id, any_signs)
    return SampleTable(dataset, lengths, digest.hexdigest(), rows)
