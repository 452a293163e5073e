"""The packed row against an oracle that knows nothing of tries: ancestors found by comparing prefixes as tuples."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from amopo.packing import TokenizedSample, pack, packed_size, samples_of, unpack

# few tokens, so that prompts, responses and whole sequences begin alike, or are prefixes of each other
TOKENS = st.lists(st.integers(0, 2), min_size=1, max_size=6)


@st.composite
def batches(draw):
    """One to three samples of the same K."""
    num_objectives = draw(st.integers(1, 4))
    samples = []
    for number in range(draw(st.integers(1, 3))):
        chosen = draw(TOKENS)
        rejected = draw(TOKENS.filter(lambda tokens, chosen=chosen: tokens != chosen))
        prompts = draw(st.lists(TOKENS, min_size=num_objectives, max_size=num_objectives))
        samples.append(TokenizedSample(prompts, chosen, rejected, number))
    return samples


def groups_of(samples, sharing):
    """Sequences (prompt, response, place) by what may share: a list of groups, each a list."""
    groups = []
    place = 0
    for sample in samples:
        for prompt in sample.prompts:
            for side, response in enumerate((sample.chosen, sample.rejected)):
                fresh = {"none": True, "pair": side == 0, "tree": prompt is sample.prompts[0] and side == 0}[sharing]
                if fresh:
                    groups.append([])
                groups[-1].append((prompt, response, place))
                place += 1
    return groups


def prefixes_of(group):
    """All beginnings of a group's sequences: the oracle's nodes, one per token of the trie."""
    return {tuple(prompt + response)[: n + 1] for prompt, response, _ in group for n in range(len(prompt + response))}


def row_prefixes(batch):
    """Per token of the row, the tokens on its path: read off the interval mask alone."""
    row, ends = batch.input_ids[0].tolist(), batch.layout.paths.subtree_end.tolist()
    return [tuple(row[k] for k in range(q + 1) if q < ends[k]) for q in range(len(row))]


@settings(max_examples=150, deadline=None)
@given(batches(), st.sampled_from(["none", "pair", "tree"]))
def test_every_shared_token_stands_once_and_the_interval_mask_is_the_ancestor_mask(samples, sharing):
    batch = pack(samples, sharing=sharing)
    found = row_prefixes(batch)
    groups = groups_of(samples, sharing)
    assert len(found) == sum(len(prefixes_of(group)) for group in groups)
    first = 0
    for group in groups:
        expected = prefixes_of(group)
        # each beginning of a sequence is the path of exactly one token of the group's part of the row
        assert sorted(found[first : first + len(expected)]) == sorted(expected)
        first += len(expected)
    assert batch.position_ids[0].tolist() == [len(path) - 1 for path in found]
    assert batch.layout.num_tokens == len(found)
    sizes = [packed_size(sample, sharing=sharing) for sample in samples]
    assert batch.layout.num_tokens == sum(size.tokens for size in sizes)
    assert len(batch.layout.row_index) == sum(size.rows for size in sizes)
    assert batch.layout.represented_tokens == sum(size.represented for size in sizes)


@settings(max_examples=150, deadline=None)
@given(batches(), st.sampled_from(["none", "pair", "tree"]))
def test_sequences_come_back_and_every_target_pair_stands_once(samples, sharing):
    batch = pack(samples, sharing=sharing)
    layout, found = batch.layout, row_prefixes(batch)
    fan_out = torch.arange(len(layout.row_index)) if layout.fan_out is None else layout.fan_out
    pairs = list(zip(layout.row_index.tolist(), layout.row_target.tolist(), strict=True))
    offsets = layout.offsets.tolist()
    expected_pairs = set()
    for number, group in enumerate(groups_of(samples, sharing)):
        for prompt, response, place in group:
            entries = fan_out[offsets[place] : offsets[place + 1]].tolist()
            assert [pairs[entry][1] for entry in entries] == response
            for done, entry in enumerate(entries):
                assert found[pairs[entry][0]] == tuple(prompt + response[:done])
                expected_pairs.add((number, tuple(prompt + response[: done + 1])))
    assert len(pairs) == len(set(pairs)) == len(expected_pairs)
    assert offsets[-1] == len(fan_out)
    assert layout.max_target == max(max(s.chosen + s.rejected) for s in samples)


@settings(max_examples=100, deadline=None)
@given(batches(), st.sampled_from(["none", "pair", "tree"]), st.sampled_from([None, 7]))
def test_unpacking_gives_the_samples_back(samples, sharing, multiple):
    batch = pack(samples, sharing=sharing, pad_to_multiple_of=multiple)
    expected = [(p, r) for s in samples for p in s.prompts for r in (s.chosen, s.rejected)]
    assert unpack(batch) == expected
    assert samples_of(batch) == samples


@settings(max_examples=100, deadline=None)
@given(batches(), st.sampled_from(["none", "pair", "tree"]), st.sampled_from([None, 7]))
def test_segments_tile_the_row_and_their_keys_are_the_paths(samples, sharing, multiple):
    batch = pack(samples, sharing=sharing, pad_to_multiple_of=multiple)
    paths, length = batch.layout.paths, batch.input_ids.shape[1]
    queries, keys = paths.cu_seqlens_q.tolist(), paths.cu_seqlens_k.tolist()
    assert queries[0] == 0 and queries[-1] == length and len(queries) == len(keys) == len(paths.lengths) + 1
    index = torch.arange(length) if paths.keys is None else paths.keys.index
    assert keys[-1] == len(index)
    ends = paths.subtree_end
    for i, (count_q, count_k) in enumerate(paths.lengths):
        assert (queries[i + 1] - queries[i], keys[i + 1] - keys[i]) == (count_q, count_k)
        path = index[keys[i] : keys[i + 1]]
        assert path[count_k - count_q :].tolist() == list(range(queries[i], queries[i + 1]))
        for q in range(queries[i], queries[i + 1]):
            visible = [k for k in range(q + 1) if q < ends[k]]
            assert path[: count_k - count_q + q - queries[i] + 1].tolist() == visible
    assert (paths.max_seqlen_q, paths.max_seqlen_k) == tuple(max(column) for column in zip(*paths.lengths, strict=True))


def test_the_formulas_of_the_three_layouts():
    x, w, y = list(range(10, 20)), [1, 2, 3], [4, 5]
    templates = [[30, 31], [40], [50, 51, 52]]
    suffix = TokenizedSample([x + t for t in templates], w, y, 0)
    prefix = TokenizedSample([t + x for t in templates], w, y, 0)
    sizes = {sharing: packed_size(suffix, sharing=sharing).tokens for sharing in ("none", "pair", "tree")}
    assert sizes == {"none": 2 * (30 + 6) + 15, "pair": 30 + 6 + 15, "tree": 10 + 6 + 15}
    assert packed_size(prefix, sharing="tree").tokens == 30 + 6 + 15  # nothing in common at the beginning
    common_head = TokenizedSample([[9, 9, 9, *t, *x] for t in templates], w, y, 0)
    assert packed_size(common_head, sharing="tree").tokens == 3 + 30 + 6 + 15


def test_responses_that_begin_alike_share_their_beginning():
    layout = pack([TokenizedSample([[1, 2]], [3, 4, 5], [3, 4, 6, 7], 0)]).layout
    assert layout.num_tokens == 2 + 2 + 1 + 2
    assert layout.row_target.tolist() == [3, 4, 5, 6, 7]
    assert layout.fan_out.tolist() == [0, 1, 2, 0, 1, 3, 4]
    # the branch token predicts 5 and 6
    assert layout.row_index.tolist() == [1, 2, 3, 3, 5]


def test_a_response_may_be_the_beginning_of_the_other():
    layout = pack([TokenizedSample([[1]], [2], [2, 3], 0)]).layout
    assert layout.num_tokens == 3 and layout.fan_out.tolist() == [0, 0, 1] and layout.offsets.tolist() == [0, 1, 3]
    assert layout.paths.lengths == ((3, 3),)


@pytest.mark.parametrize("sharing", ["none", "pair", "tree"])
def test_indices_sorted_by_what_they_read(sharing):
    layout = pack([TokenizedSample([[1, 2], [1, 3]], [4, 5], [4, 6], i) for i in range(2)], sharing=sharing).layout
    for part, index in ((layout.rows, layout.row_index), (layout.fan, layout.fan_out)):
        if part is not None:
            assert part.index.equal(index)
            for row in range(part.num_rows):
                readers = part.order[part.offsets[row] : part.offsets[row + 1]]
                assert readers.tolist() == (index == row).nonzero().flatten().tolist()
    assert layout.is_shared == (sharing != "none")
